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
        val=val_flag,
        names=names_flag,
        counts=counts_flag,
        seed=lookup(dpath="datasets/{dataset}/seed", within=config),
        duplicates=lookup(dpath="datasets/{dataset}/duplicates", within=config),
        code=[source(f"pipeline.{module}") for module in ("label", "split", "duplicates")],
    shell:
        "python -m pipeline.label {input.shards} {params.tables} {params.resized} --output {params.folder} {params.val}"
        " {params.counts} {params.names} --duplicates {params.duplicates} --seed {params.seed} 2>&1 | tee {log}"
