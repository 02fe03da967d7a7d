rule lmdb:
    input:
        list="results/datasets/{dataset}/lists/{part}.txt",
        labels="results/datasets/{dataset}/lists/labels.txt",
        images=of_shards("resize/{shard}"),
    output:
        database=directory("results/datasets/{dataset}/lmdb/{part}"),
        manifest="results/datasets/{dataset}/lmdb/{part}.manifest.json",
    log:
        "logs/datasets/{dataset}/lmdb/{part}.log",
    threads: 8
    resources:
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        root=subpath(input[2], parent=True),  # of the first shard's images
        options=options_of("dataset.database"),
        code=code_of("pipeline.dataset.database"),
    shell:
        "python -m pipeline.dataset.database {input.list:q} {params.root:q} {output.database:q} --labels {input.labels:q}"
        " --manifest {output.manifest:q} --options {params.options:q} --threads {threads} 2>&1 | tee {log:q}"
