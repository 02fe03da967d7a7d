rule mean:
    input:
        database="results/datasets/{dataset}/lmdb/train",
        manifest="results/datasets/{dataset}/lmdb/train.manifest.json",
    output:
        mean="results/datasets/{dataset}/mean.binaryproto",
        values="results/datasets/{dataset}/mean.json",
    log:
        "logs/datasets/{dataset}/mean.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        code=code_of("pipeline.dataset.mean"),
    shell:
        "python -m pipeline.dataset.mean {input.database:q} {output.mean:q} --values {output.values:q} 2>&1 | tee {log:q}"
