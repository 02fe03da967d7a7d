rule pictures:
    input:
        lists=expand("results/datasets/{{dataset}}/lists/{part}.txt", part=["train", "val"]),
        labels="results/datasets/{dataset}/lists/labels.txt",
        sizes="results/datasets/{dataset}/lists/sizes.csv",
        database="results/datasets/{dataset}/lmdb/train",
        manifest="results/datasets/{dataset}/lmdb/train.manifest.json",
        mean="results/datasets/{dataset}/mean.binaryproto",
    output:
        overview=dataset_report("pictures/overview.png", "overview", "images of each class"),
        classes=dataset_report("pictures/classes.png", "classes", "how many of each class"),
        sizes=dataset_report("pictures/sizes.png", "sizes", "sizes of the files"),
        vector=expand("results/datasets/{{dataset}}/pictures/{plot}.svg", plot=["classes", "sizes"]),
        mean=dataset_report("pictures/mean.png", "mean", "mean image"),
        # Of the first 40 classes, as in the overview: a thousand would make the report large.
        sheets=directory(
            dataset_report(
                "pictures/sheets",
                "sheet",
                "contact sheet {number}: {name}",
                patterns=["{number,00[0-3][0-9]}_{name}.jpg"],
            )
        ),
    log:
        "logs/datasets/{dataset}/pictures.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
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
        dataset_report("augmented.png", "augmented", "augmented images"),
    log:
        "logs/datasets/{dataset}/augmented.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(5),
    params:
        options=options_of("report.augmentation_examples"),
        code=code_of("pipeline.report.augmentation_examples"),
    shell:
        "python -m pipeline.report.augmentation_examples {input.database:q} {output:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule plots:
    input:
        metrics="results/experiments/{experiment}/train/metrics.csv",
    output:
        curves=experiment_report("report/curves.png", "curves", "curves"),
        vector="results/experiments/{experiment}/report/curves.svg",
    log:
        "logs/experiments/{experiment}/plots.log",
    resources:
        mem_mb=grown(500),
        runtime=grown(5),
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
        confusion=experiment_report(
            "report/confusion{of}.png", "confusion", of_part("confusion", "confusion matrix")
        ),
        calibration=experiment_report(
            "report/calibration{of}.png", "calibration", of_part("calibration", "calibration")
        ),
        mistakes=experiment_report(
            "report/mistakes{of}.png", "mistakes", of_part("mistakes", "surest mistakes")
        ),
        vector=expand(
            "results/experiments/{{experiment}}/report/{plot}{{of}}.svg",
            plot=["confusion", "calibration"],
        ),
    log:
        "logs/experiments/{experiment}/evaluated{of}.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(15),
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
        map=experiment_report("report/map_{blob}.png", "map", "map of {blob}"),
        vector="results/experiments/{experiment}/report/map_{blob}.svg",
        neighbours=experiment_report(
            "report/neighbours_{blob}.png", "neighbours", "neighbours by {blob}"
        ),
        table="results/experiments/{experiment}/report/neighbours_{blob}.csv",
        figures="results/experiments/{experiment}/report/neighbours_{blob}.json",
    log:
        "logs/experiments/{experiment}/neighbours_{blob}.log",
    resources:
        mem_mb=grown(3000),
        runtime=grown(30),
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
        filters=experiment_report("pictures/filters.png", "filters", "filters"),
        probabilities=experiment_report(
            "pictures/probabilities.png", "probabilities", "probabilities"
        ),
        activations=experiment_report("pictures/activations.png", "activations", "activations"),
        maps=directory(
            experiment_report(
                "pictures/feature_maps",
                "feature_maps",
                "feature maps {number}: {image}",
                patterns=["{number,\d+}_{image}.png"],
            )
        ),
        graph=experiment_report("pictures/net.svg", "net", "net"),
    log:
        "logs/experiments/{experiment}/visualize.log",
    resources:
        mem_mb=grown(4000),
        runtime=grown(30),
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
        metrics=of_each_experiment("train/metrics.csv"),
        bests=of_each_experiment("train/best.json"),
        seconds=of_each_experiment("train/seconds.csv"),
        summaries=of_each_experiment("evaluate/summary.json"),
    output:
        table="results/report/comparison.csv",
        plot=comparison_report("comparison.png", "comparison_plot", "curves"),
        vector="results/report/comparison.svg",
        seconds="results/report/seconds.csv",
        sweeps=SWEPT,
        sweep_tables=SWEEP_TABLES,
        sums="results/report/SHA256SUMS",
        sweep_vectors=expand("results/report/{sweep}.svg", sweep=config["sweeps"]),
    log:
        "logs/report/comparison.log",
    resources:
        mem_mb=grown(500),
        runtime=grown(5),
    params:
        folder=subpath(output.table, parent=True),
        options=options_of("report.comparison"),
        code=code_of("pipeline.report.comparison"),
    shell:
        "python -m pipeline.report.comparison {params.folder:q} --metrics {input.metrics:q} --summaries {input.summaries:q}"
        " --bests {input.bests:q} --seconds {input.seconds:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule overview:
    input:
        table="results/report/comparison.csv",
        plot="results/report/comparison.png",
        metrics=of_each_experiment("train/metrics.csv"),
        classes=of_each_experiment("evaluate/per_class.csv"),
        confusions=of_each_experiment("evaluate/confusion.csv"),
        curves=of_each_experiment("report/curves.png"),
        matrices=of_each_experiment("report/confusion.png"),
        mistakes=of_each_experiment("report/mistakes.png"),
    output:
        comparison_report("overview.html", "first_page", "overview"),
    log:
        "logs/report/overview.log",
    resources:
        mem_mb=grown(500),
        runtime=grown(5),
    params:
        code=code_of("pipeline.report.overview"),
    shell:
        "python -m pipeline.report.overview {output:q} --table {input.table:q} --plot {input.plot:q} --metrics {input.metrics:q}"
        " --classes {input.classes:q} --confusions {input.confusions:q} --curves {input.curves:q} --matrices {input.matrices:q}"
        " --mistakes {input.mistakes:q} 2>&1 | tee {log:q}"


rule experiment_tables:
    input:
        tables_of,
    output:
        directory(experiment_report("tables", "table", table_label, patterns=["{table}.html"])),
    log:
        "logs/experiments/{experiment}/tables.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(5),
    params:
        of="{experiment}",
        code=code_of("pipeline.report.tables"),
    shell:
        "python -m pipeline.report.tables {output:q} {input:q} --of {params.of:q} 2>&1 | tee {log:q}"


use rule experiment_tables as dataset_tables with:
    input:
        "results/datasets/{dataset}/lists/duplicates.csv",
    output:
        directory(dataset_report("tables", "table", table_label, patterns=["{table}.html"])),
    log:
        "logs/datasets/{dataset}/tables.log",
    params:
        of="{dataset}",
        code=code_of("pipeline.report.tables"),


use rule experiment_tables as comparison_tables with:
    input:
        "results/report/comparison.csv",
        SWEEP_TABLES,
    output:
        directory(comparison_report("tables", "table", table_label, patterns=["{table}.html"])),
    log:
        "logs/report/tables.log",
    params:
        of="All experiments",
        code=code_of("pipeline.report.tables"),
