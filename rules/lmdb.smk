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
        mem_mb=2000,
        runtime=60,
    params:
        root=of_images("resize"),
        color=lookup(dpath="datasets/{dataset}/color", within=config),
        channels=lookup(dpath="datasets/{dataset}/channels", within=config),
        encode=encode_flag,
        copies=copies_flag,
        code=source("pipeline.database"),
    shell:
        "python -m pipeline.database {input.list} {params.root} {output.database} --labels {input.labels}"
        " --manifest {output.manifest} --color {params.color} --channels {params.channels} {params.encode} {params.copies}"
        " --threads {threads} 2>&1 | tee {log}"
