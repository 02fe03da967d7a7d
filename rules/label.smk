rule label:
    input:
        shards=of_images("list"),
        tables=of_shards("download/{shard}.csv"),
        images=of_shards("resize/{shard}"),
        names=names_of,
    output:
        LISTS,
    log:
        "logs/datasets/{dataset}/label.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(10),
    params:
        dataset=subpath(input.shards, parent=True),
        folder=subpath(output[0], parent=True),
        options=options_of("dataset.label"),
        code=code_of("pipeline.dataset.label"),
    shell:
        "python -m pipeline.dataset.label {input.shards:q} {params.dataset:q}/download {params.dataset:q}/resize --output {params.folder:q}"
        " --options {params.options:q} 2>&1 | tee {log:q}"
