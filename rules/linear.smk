rule linear:
    input:
        train=of_dataset("lmdb/train"),
        train_manifest=of_dataset("lmdb/train.manifest.json"),
        val_manifest=of_dataset("lmdb/val.manifest.json"),
        mean=of_dataset("mean.binaryproto"),
        weights=weights_of,
        net=net_of,
    output:
        strategy="results/experiments/{experiment}/linear/strategy.json",
        classifier="results/experiments/{experiment}/linear/classifier.caffemodel",
        sums="results/experiments/{experiment}/linear/SHA256SUMS",
        measured="results/experiments/{experiment}/linear/measured.csv",
        plot=experiment_report("linear/measured.png", "strategy", "strategy, and why"),
        vector="results/experiments/{experiment}/linear/measured.svg",
    log:
        "logs/experiments/{experiment}/linear.log",
    threads: 8
    resources:
        mem_mb=grown(4000),
        runtime=grown(120),
        gpu=GPUS,
    params:
        folder=subpath(output.strategy, parent=True),
        val=subpath(input.val_manifest, strip_suffix=".manifest.json"),
        options=options_of("training.linear"),
        code=code_of("pipeline.training.linear"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.training.linear {params.folder:q} --train {input.train:q} --val {params.val:q}"
        " --mean {input.mean:q} --weights {input.weights:q} --options {params.options:q} 2>&1 | tee {log:q}"
