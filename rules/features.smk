rule features:
    input:
        net="results/experiments/{experiment}/prototxt/test.prototxt",
        weights=learned_weights,
        database=of_dataset("lmdb/val"),
        manifest=of_dataset("lmdb/val.manifest.json"),
    output:
        folder=directory("results/experiments/{experiment}/features"),
    log:
        "logs/experiments/{experiment}/features.log",
    threads: 8
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=GPUS,
    params:
        blobs=lookup(dpath="experiments/{experiment}/features", within=config),
        formats=lookup(dpath="experiments/{experiment}/feature_formats", within=config),
        gpu=GPU_FLAG,
        code=[
            source(f"pipeline.{module}") for module in ("features", "feature_files", "extraction")
        ],
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.features {input.net} {input.weights} {output.folder}"
        " --blobs {params.blobs} --formats {params.formats} {params.gpu} 2>&1 | tee {log}"


rule evaluate:
    input:
        net="results/experiments/{experiment}/prototxt/test.prototxt",
        weights=learned_weights,
        list=of_evaluated("lists/{part}.txt"),
        labels=of_dataset("lists/labels.txt"),
        database=of_evaluated("lmdb/{part}"),
        manifest=of_evaluated("lmdb/{part}.manifest.json"),
    output:
        summary="results/experiments/{experiment}/evaluate{of}/summary.json",
        per_class=report(
            "results/experiments/{experiment}/evaluate{of}/per_class.csv",
            caption="../report/per_class.rst",
            category="{experiment}",
            labels=of_part("accuracy by class (CSV)"),
        ),
        confusion="results/experiments/{experiment}/evaluate{of}/confusion.csv",
        calibration="results/experiments/{experiment}/evaluate{of}/calibration.csv",
        predictions=report(
            "results/experiments/{experiment}/evaluate{of}/predictions.csv",
            caption="../report/predictions.rst",
            category="{experiment}",
            labels=of_part("predictions (CSV)"),
        ),
    log:
        "logs/experiments/{experiment}/evaluate{of}.log",
    threads: 8
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=GPUS,
    params:
        folder=subpath(output.summary, parent=True),
        gpu=GPU_FLAG,
        code=[source(f"pipeline.{module}") for module in ("evaluate", "extraction")],
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.evaluate {input.net} {input.weights} {params.folder}"
        " --list {input.list} --labels {input.labels} --database {input.database} {params.gpu} 2>&1 | tee {log}"


rule classify:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        preprocessing="results/experiments/{experiment}/prototxt/preprocessing.json",
        weights=learned_weights,
        labels=of_dataset("lists/labels.txt"),
        mean=of_dataset("mean.binaryproto"),
        images=lookup(dpath="experiments/{experiment}/classify/images", within=config),
    output:
        report(
            "results/experiments/{experiment}/classify.csv",
            caption="../report/classify.rst",
            category="{experiment}",
            labels={"result": "classified images (CSV)"},
        ),
    log:
        "logs/experiments/{experiment}/classify.log",
    threads: 8
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=GPUS,
    params:
        crops=lambda wildcards: (
            "--oversample"
            if config["experiments"][wildcards.experiment]["classify"]["oversample"]
            else ""
        ),
        gpu=GPU_FLAG,
        code=[source(f"pipeline.{module}") for module in ("classify", "preprocessing")],
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.classify {input.net} {input.weights} {input.images:q}"
        " --labels {input.labels} --csv {output} {params.crops} {params.gpu} 2>&1 | tee {log}"
