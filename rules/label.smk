rule label:
    input:
        shards="results/datasets/{dataset}/list",
        tables=of_shards("download/{shard}.csv"),
        images=of_shards("resize/{shard}"),
    output:
        lists=expand("results/datasets/{{dataset}}/lists/{part}.txt", part=["train", "val"]),
        labels="results/datasets/{dataset}/lists/labels.txt",
        classes="results/datasets/{dataset}/lists/classes.csv",
        synsets="results/datasets/{dataset}/lists/synset_words.txt",
    log:
        "logs/datasets/{dataset}/label.log",
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        tables="results/datasets/{dataset}/download",
        resized="results/datasets/{dataset}/resize",
        folder="results/datasets/{dataset}/lists",
        val=val_flag,
        names=names_flag,
        counts=counts_flag,
        seed=lookup(dpath="datasets/{dataset}/seed", within=config),
        code=source("pipeline.label"),
    shell:
        "python -m pipeline.label {input.shards} {params.tables} {params.resized} --output {params.folder} {params.val}"
        " {params.counts} {params.names} --seed {params.seed} > {log} 2>&1"
