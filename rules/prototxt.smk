rule prototxt:
    input:
        train=of_dataset("lmdb/train.manifest.json"),
        val=of_dataset("lmdb/val.manifest.json"),
        mean=of_dataset("mean.binaryproto"),
        infogain=infogain_of,
        net=net_of,
        strategy=fitted("strategy.json"),
    output:
        nets=expand(
            "results/experiments/{{experiment}}/prototxt/{net}.prototxt",
            net=["train", "test", "deploy"],
        ),
        solver="results/experiments/{experiment}/prototxt/solver.prototxt",
        preprocessing="results/experiments/{experiment}/prototxt/preprocessing.json",
    log:
        "logs/experiments/{experiment}/prototxt.log",
    resources:
        mem_mb=500,
        runtime=5,
    params:
        folder=subpath(output.solver, parent=True),
        train=of_dataset("lmdb/train"),
        val=of_dataset("lmdb/val"),
        model=lookup(dpath="experiments/{experiment}/model", within=config),
        last=last_flags,
        batch_size=lookup(dpath="experiments/{experiment}/batch_size", within=config),
        solver=solver_fields,
        augmentation=augmentation_flag,
        resized=resized_flags,
        strategy=strategy_flags,
        batch_norm=lookup(dpath="experiments/{experiment}/batch_norm", within=config),
        infogain=infogain_flag,
        gpu=GPU_FLAG,
        code=[
            source(f"pipeline.{module}")
            for module in ("prototxt", "solver", "strategies", "preprocessing")
        ],
        model_code=model_source,
    shell:
        "python -m pipeline.prototxt {params.folder} --name {wildcards.experiment} --model {params.model:q}"
        " --train {params.train} --val {params.val} --mean {input.mean} {params.last}"
        " --batch-size {params.batch_size} --solver {params.solver:q}"
        " {params.augmentation} {params.infogain} {params.strategy} --batch-norm {params.batch_norm}"
        " {params.resized} {params.gpu} 2>&1 | tee {log}"
