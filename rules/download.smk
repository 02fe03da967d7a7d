rule digits:
    output:
        folder=local(directory(EXAMPLE)),
    log:
        "logs/example/digits.log",
    resources:
        mem_mb=grown(500),
        runtime=grown(5),
    params:
        code=code_of("pipeline.sources.digits"),
    shell:
        "python -m pipeline.sources.digits {output.folder:q} 2>&1 | tee {log:q}"


checkpoint shards:
    input:
        list=list_of,
        val_labels=val_labels_of,
    output:
        folder=directory("results/datasets/{dataset}/list"),
        names="results/datasets/{dataset}/shards.txt",
    log:
        "logs/datasets/{dataset}/shards.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(10),
    params:
        options=options_of("sources.shards"),
        listing=listing_of,
        code=code_of("pipeline.sources.shards"),
    shell:
        "python -m pipeline.sources.shards {output.folder:q} --names {output.names:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule download:
    input:
        list=list_of_shard,
    output:
        images=directory("results/datasets/{dataset}/download/{shard}"),
        table="results/datasets/{dataset}/download/{shard}.csv",
        seconds="results/datasets/{dataset}/download/{shard}.seconds.csv",
    log:
        "logs/datasets/{dataset}/download/{shard}.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(120),
    params:
        options=options_of("dataset.download"),
        patience=patience,
        state=state_of,
        code=code_of("pipeline.dataset.download"),
    shell:
        "python -m pipeline.dataset.download {input.list:q} {output.images:q} --table {output.table:q}"
        " --options {params.options:q} --options {params.patience:q} 2>&1 | tee {log:q}"
