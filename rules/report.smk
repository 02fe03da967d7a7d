rule pictures:
    input:
        lists=expand("results/datasets/{{dataset}}/lists/{part}.txt", part=["train", "val"]),
        labels="results/datasets/{dataset}/lists/labels.txt",
        sizes="results/datasets/{dataset}/lists/sizes.csv",
        database="results/datasets/{dataset}/lmdb/train",
        manifest="results/datasets/{dataset}/lmdb/train.manifest.json",
        mean="results/datasets/{dataset}/mean.binaryproto",
    output:
        overview=report(
            "results/datasets/{dataset}/pictures/overview.png",
            caption="../report/overview.rst",
            category="{dataset}",
            labels={"result": "images of each class"},
        ),
        classes=report(
            "results/datasets/{dataset}/pictures/classes.png",
            caption="../report/classes.rst",
            category="{dataset}",
            labels={"result": "how many of each class"},
        ),
        sizes=report(
            "results/datasets/{dataset}/pictures/sizes.png",
            caption="../report/sizes.rst",
            category="{dataset}",
            labels={"result": "sizes of the files"},
        ),
        vector=expand("results/datasets/{{dataset}}/pictures/{plot}.svg", plot=["classes", "sizes"]),
        mean=report(
            "results/datasets/{dataset}/pictures/mean.png",
            caption="../report/mean.rst",
            category="{dataset}",
            labels={"result": "mean image"},
        ),
        # Of the first 40 classes, as the overview has them: of a thousand, the report would be heavy.
        sheets=report(
            directory("results/datasets/{dataset}/pictures/sheets"),
            patterns=["{number,00[0-3][0-9]}_{name}.jpg"],
            caption="../report/sheet.rst",
            category="{dataset}",
            labels={"result": "contact sheet {number}: {name}"},
        ),
    log:
        "logs/datasets/{dataset}/pictures.log",
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        dataset=subpath(input.mean, parent=True),
        folder=subpath(output.overview, parent=True),
        code=code_of("pipeline.report.dataset_pictures"),
    shell:
        "python -m pipeline.report.dataset_pictures {params.dataset:q} {params.folder:q} 2>&1 | tee {log:q}"


rule augmented:
    input:
        database="results/datasets/{dataset}/lmdb/train",
        manifest="results/datasets/{dataset}/lmdb/train.manifest.json",
    output:
        report(
            "results/datasets/{dataset}/augmented.png",
            caption="../report/augmented.rst",
            category="{dataset}",
            labels={"result": "augmented images"},
        ),
    log:
        "logs/datasets/{dataset}/augmented.log",
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        options=options_of("report.augmentation_examples"),
        code=code_of("pipeline.report.augmentation_examples"),
    shell:
        "python -m pipeline.report.augmentation_examples {input.database:q} {output:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule plots:
    input:
        metrics="results/experiments/{experiment}/train/metrics.csv",
    output:
        curves=report(
            "results/experiments/{experiment}/report/curves.png",
            caption="../report/curves.rst",
            category="{experiment}",
            labels={"result": "curves"},
        ),
        vector="results/experiments/{experiment}/report/curves.svg",
    log:
        "logs/experiments/{experiment}/plots.log",
    resources:
        mem_mb=500,
        runtime=5,
    params:
        folder=subpath(output.curves, parent=True),
        code=code_of("pipeline.report.plots"),
    shell:
        "python -m pipeline.report.plots {params.folder:q} --metrics {input.metrics:q} 2>&1 | tee {log:q}"


rule evaluated:
    input:
        summary="results/experiments/{experiment}/evaluate{of}/summary.json",
        confusion="results/experiments/{experiment}/evaluate{of}/confusion.csv",
        calibration="results/experiments/{experiment}/evaluate{of}/calibration.csv",
        predictions="results/experiments/{experiment}/evaluate{of}/predictions.csv",
        database=of_evaluated("lmdb/{part}"),
        manifest=of_evaluated("lmdb/{part}.manifest.json"),
    output:
        confusion=report(
            "results/experiments/{experiment}/report/confusion{of}.png",
            caption="../report/confusion.rst",
            category="{experiment}",
            labels=of_part("confusion matrix"),
        ),
        calibration=report(
            "results/experiments/{experiment}/report/calibration{of}.png",
            caption="../report/calibration.rst",
            category="{experiment}",
            labels=of_part("calibration"),
        ),
        mistakes=report(
            "results/experiments/{experiment}/report/mistakes{of}.png",
            caption="../report/mistakes.rst",
            category="{experiment}",
            labels=of_part("surest mistakes"),
        ),
        vector=expand(
            "results/experiments/{{experiment}}/report/{plot}{{of}}.svg",
            plot=["confusion", "calibration"],
        ),
    log:
        "logs/experiments/{experiment}/evaluated{of}.log",
    resources:
        mem_mb=1000,
        runtime=15,
    params:
        evaluation=subpath(input.summary, parent=True),
        folder=subpath(output.mistakes, parent=True),
        options=options_of("report.evaluation"),
        code=code_of("pipeline.report.evaluation"),
    shell:
        "python -m pipeline.report.evaluation {params.evaluation:q} {input.database:q} {params.folder:q}"
        " --options {params.options:q} 2>&1 | tee {log:q}"


rule neighbours:
    input:
        features="results/experiments/{experiment}/features",
        database=of_dataset("lmdb/val"),
        manifest=of_dataset("lmdb/val.manifest.json"),
        labels=of_dataset("lists/labels.txt"),
    output:
        map=report(
            "results/experiments/{experiment}/report/map_{blob}.png",
            caption="../report/map.rst",
            category="{experiment}",
            labels={"result": "map of {blob}"},
        ),
        vector="results/experiments/{experiment}/report/map_{blob}.svg",
        neighbours=report(
            "results/experiments/{experiment}/report/neighbours_{blob}.png",
            caption="../report/neighbours.rst",
            category="{experiment}",
            labels={"result": "neighbours by {blob}"},
        ),
        table="results/experiments/{experiment}/report/neighbours_{blob}.csv",
        figures="results/experiments/{experiment}/report/neighbours_{blob}.json",
    log:
        "logs/experiments/{experiment}/neighbours_{blob}.log",
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        folder=subpath(output.map, parent=True),
        options=options_of("report.neighbours"),
        code=code_of("pipeline.report.neighbours"),
    shell:
        "OMP_NUM_THREADS=1 python -m pipeline.report.neighbours {input.features:q} {input.database:q} {params.folder:q}"
        " --labels {input.labels:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule visualize:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        train="results/experiments/{experiment}/prototxt/train.prototxt",
        preprocessing="results/experiments/{experiment}/prototxt/preprocessing.json",
        weights=learned_weights,
        labels=of_dataset("lists/labels.txt"),
        mean=of_dataset("mean.binaryproto"),
        infogain=infogain_of,
        images=shown_images,
        manifest=of_dataset("lmdb/val.manifest.json"),
    output:
        filters=report(
            "results/experiments/{experiment}/pictures/filters.png",
            caption="../report/filters.rst",
            category="{experiment}",
            labels={"result": "filters"},
        ),
        probabilities=report(
            "results/experiments/{experiment}/pictures/probabilities.png",
            caption="../report/probabilities.rst",
            category="{experiment}",
            labels={"result": "probabilities"},
        ),
        activations=report(
            "results/experiments/{experiment}/pictures/activations.png",
            caption="../report/activations.rst",
            category="{experiment}",
            labels={"result": "activations"},
        ),
        maps=report(
            directory("results/experiments/{experiment}/pictures/feature_maps"),
            patterns=["{number,\d+}_{image}.png"],
            caption="../report/feature_maps.rst",
            category="{experiment}",
            labels={"result": "feature maps {number}: {image}"},
        ),
        graph=report(
            "results/experiments/{experiment}/pictures/net.svg",
            caption="../report/net.rst",
            category="{experiment}",
            labels={"result": "net"},
        ),
    log:
        "logs/experiments/{experiment}/visualize.log",
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
        gpu=GPUS,
    params:
        folder=subpath(output.filters, parent=True),
        kind=shown_by,
        options=options_of("report.visualize"),
        code=code_of("pipeline.report.visualize"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.report.visualize {input.net:q} {input.weights:q} {params.folder:q}"
        " --labels {input.labels:q} {params.kind} {input.images:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule comparison:
    input:
        metrics=expand("results/experiments/{name}/train/metrics.csv", name=config["experiments"]),
        bests=expand("results/experiments/{name}/train/best.json", name=config["experiments"]),
        seconds=expand("results/experiments/{name}/train/seconds.csv", name=config["experiments"]),
        summaries=expand(
            "results/experiments/{name}/evaluate/summary.json", name=config["experiments"]
        ),
    output:
        table=report(
            "results/report/comparison.csv",
            caption="../report/comparison.rst",
            category="Comparison",
            labels={"result": "table (CSV)"},
        ),
        plot=report(
            "results/report/comparison.png",
            caption="../report/comparison_plot.rst",
            category="Comparison",
            labels={"result": "curves"},
        ),
        vector="results/report/comparison.svg",
        seconds="results/report/seconds.csv",
        sweeps=SWEPT,
        sweep_vectors=expand("results/report/{sweep}.svg", sweep=config["sweeps"]),
    log:
        "logs/report/comparison.log",
    resources:
        mem_mb=500,
        runtime=5,
    params:
        folder=subpath(output.table, parent=True),
        options=options_of("report.comparison"),
        code=code_of("pipeline.report.comparison"),
    shell:
        "python -m pipeline.report.comparison {params.folder:q} --metrics {input.metrics:q} --summaries {input.summaries:q}"
        " --bests {input.bests:q} --seconds {input.seconds:q} --options {params.options:q} 2>&1 | tee {log:q}"
