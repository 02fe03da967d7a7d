rule resize:
    input:
        images="results/datasets/{dataset}/download/{shard}",
    output:
        images=directory("results/datasets/{dataset}/resize/{shard}"),
    log:
        "logs/datasets/{dataset}/resize/{shard}.log",
    priority: 1  # before further downloads
    threads: threads_of_shard
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        options=options_of("dataset.resize"),
        code=code_of("pipeline.dataset.resize"),
    shell:
        "python -m pipeline.dataset.resize {input.images:q} {output.images:q} --options {params.options:q}"
        " --threads {threads} 2>&1 | tee {log:q}"
