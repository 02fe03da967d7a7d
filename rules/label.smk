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
        mem_mb=1000,
        runtime=10,
    params:
        tables=of_images("download"),
        resized=of_images("resize"),
        folder="results/datasets/{dataset}/lists",
        options=options_of("dataset.label"),
        code=code_of("pipeline.dataset.label"),
    shell:
        "python -m pipeline.dataset.label {input.shards:q} {params.tables:q} {params.resized:q} --output {params.folder:q}"
        " --options {params.options:q} 2>&1 | tee {log:q}"
