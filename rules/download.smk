rule digits:
    output:
        folder=directory("results/example/digits"),
    log:
        "logs/example/digits.log",
    resources:
        mem_mb=500,
        runtime=5,
    params:
        code=source("pipeline.digits"),
    shell:
        "python -m pipeline.digits {output.folder} 2>&1 | tee {log}"


checkpoint shards:
    input:
        list=list_of,
        val_labels=val_labels_of,
    output:
        folder=directory("results/datasets/{dataset}/list"),
    log:
        "logs/datasets/{dataset}/shards.log",
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        source=source_flags,
        listing=listing_of,
        size=lookup(dpath="datasets/{dataset}/shard_size", within=config),
        code=source("pipeline.shards"),
        reader=[source(f"pipeline.{module}") for module in ("sources", "folders")],
    shell:
        "python -m pipeline.shards {output.folder} {params.source} --size {params.size} 2>&1 | tee {log}"


rule download:
    input:
        list=list_of_shard,
    output:
        images=directory("results/datasets/{dataset}/download/{shard}"),
        table="results/datasets/{dataset}/download/{shard}.csv",
    log:
        "logs/datasets/{dataset}/download/{shard}.log",
    resources:
        mem_mb=1000,
        runtime=120,
    params:
        options=download_flags(configuration.keys.DOWNLOAD_FLAGS),
        patience=patience_flags,
        code=source("pipeline.download"),
        fetcher=source("pipeline.web"),
    shell:
        "python -m pipeline.download {input.list} {output.images} --table {output.table} {params.options}"
        " {params.patience} 2>&1 | tee {log}"
