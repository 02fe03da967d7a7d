rule resize:
    input:
        images="results/datasets/{dataset}/download/{shard}",
    output:
        images=directory("results/datasets/{dataset}/resize/{shard}"),
    log:
        "logs/datasets/{dataset}/resize/{shard}.log",
    threads: 8
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        height=lookup(dpath="datasets/{dataset}/size/height", within=config),
        width=lookup(dpath="datasets/{dataset}/size/width", within=config),
        mode=lookup(dpath="datasets/{dataset}/resize_mode", within=config),
        interpolation=lookup(dpath="datasets/{dataset}/interpolation", within=config),
        color=lookup(dpath="datasets/{dataset}/color", within=config),
        code=source("pipeline.resize"),
    shell:
        "python -m pipeline.resize {input.images} {output.images} --height {params.height} --width {params.width}"
        " --mode {params.mode} --interpolation {params.interpolation} --color {params.color} --threads {threads} 2>&1 | tee {log}"
