rule train:
    input:
        solver="results/experiments/{experiment}/prototxt/solver.prototxt",
        nets=expand(
            "results/experiments/{{experiment}}/prototxt/{net}.prototxt", net=["train", "test"]
        ),
        weights=weights_of,
        train=of_dataset("lmdb/train"),
        infogain=infogain_of,
        val=of_dataset("lmdb/val"),
        train_manifest=of_dataset("lmdb/train.manifest.json"),
        val_manifest=of_dataset("lmdb/val.manifest.json"),
    output:
        weights="results/experiments/{experiment}/train/final.caffemodel",
        metrics="results/experiments/{experiment}/train/metrics.csv",
        log="results/experiments/{experiment}/train/train.log",
        layers=report(
            "results/experiments/{experiment}/train/layers.csv",
            caption="../report/layers.rst",
            category="{experiment}",
            labels={"result": "layers (CSV)"},
        ),
    log:
        "logs/experiments/{experiment}/train.log",
    threads: 8
    resources:
        mem_mb=4000,
        runtime=1440,
        gpu=GPUS,
    params:
        weights=weights_flag,
        code=source("pipeline.train"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.train {input.solver} {params.weights} --output {output.weights}"
        " --log {output.log} --metrics {output.metrics} --layers {output.layers} > {log} 2>&1"
