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
        mem_mb=grown(4000),
        runtime=grown(120),
        gpu=GPUS,
    params:
        options=options_of("inference.features"),
        code=code_of("pipeline.inference.features"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.inference.features {input.net:q} {input.weights:q} {output.folder:q}"
        " --options {params.options:q} 2>&1 | tee {log:q}"


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
        sums="results/experiments/{experiment}/evaluate{of}/SHA256SUMS",
        per_class="results/experiments/{experiment}/evaluate{of}/per_class.csv",
        confusion="results/experiments/{experiment}/evaluate{of}/confusion.csv",
        calibration="results/experiments/{experiment}/evaluate{of}/calibration.csv",
        predictions="results/experiments/{experiment}/evaluate{of}/predictions.csv",
    log:
        "logs/experiments/{experiment}/evaluate{of}.log",
    threads: 8
    resources:
        mem_mb=grown(4000),
        runtime=grown(120),
        gpu=GPUS,
    params:
        folder=subpath(output.summary, parent=True),
        options=options_of("inference.evaluate"),
        code=code_of("pipeline.inference.evaluate"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.inference.evaluate {input.net:q} {input.weights:q} {params.folder:q}"
        " --list {input.list:q} --labels {input.labels:q} --database {input.database:q}"
        " --options {params.options:q} 2>&1 | tee {log:q}"


rule classify:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        preprocessing="results/experiments/{experiment}/prototxt/preprocessing.json",
        weights=learned_weights,
        labels=of_dataset("lists/labels.txt"),
        mean=of_dataset("mean.binaryproto"),
        images=classified,
    output:
        "results/experiments/{experiment}/classify.csv",
    log:
        "logs/experiments/{experiment}/classify.log",
    threads: 8
    resources:
        mem_mb=grown(4000),
        runtime=grown(120),
        gpu=GPUS,
    params:
        options=options_of("inference.classify"),
        code=code_of("pipeline.inference.classify"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.inference.classify {input.net:q} {input.weights:q} {input.images:q}"
        " --labels {input.labels:q} --csv {output:q} --options {params.options:q} 2>&1 | tee {log:q}"
