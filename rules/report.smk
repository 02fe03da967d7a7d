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
        ),
        classes=report(
            "results/datasets/{dataset}/pictures/classes.png",
            caption="../report/classes.rst",
            category="{dataset}",
        ),
        sizes=report(
            "results/datasets/{dataset}/pictures/sizes.png",
            caption="../report/sizes.rst",
            category="{dataset}",
        ),
        vector=expand("results/datasets/{{dataset}}/pictures/{plot}.svg", plot=["classes", "sizes"]),
        mean=report(
            "results/datasets/{dataset}/pictures/mean.png",
            caption="../report/mean.rst",
            category="{dataset}",
        ),
        sheets=directory("results/datasets/{dataset}/pictures/sheets"),
    log:
        "logs/datasets/{dataset}/pictures.log",
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        dataset=subpath(input.mean, parent=True),
        folder=subpath(output.overview, parent=True),
        code=source("pipeline.pictures"),
    shell:
        "python -m pipeline.pictures {params.dataset} {params.folder} > {log} 2>&1"


rule augmented:
    input:
        database="results/datasets/{dataset}/lmdb/train",
        manifest="results/datasets/{dataset}/lmdb/train.manifest.json",
    output:
        report(
            "results/datasets/{dataset}/augmented.png",
            caption="../report/augmented.rst",
            category="{dataset}",
        ),
    log:
        "logs/datasets/{dataset}/augmented.log",
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        changes=lambda wildcards: augmentation_of(wildcards.dataset)[0],
        seed=lookup(dpath="datasets/{dataset}/seed", within=config),
        code=source("pipeline.augmented"),
    shell:
        "python -m pipeline.augmented {input.database} {output} --augmentation {params.changes:q} --seed {params.seed}"
        " > {log} 2>&1"


rule plots:
    input:
        metrics="results/experiments/{experiment}/train/metrics.csv",
        confusion="results/experiments/{experiment}/evaluate/confusion.csv",
    output:
        curves=report(
            "results/experiments/{experiment}/report/curves.png",
            caption="../report/curves.rst",
            category="{experiment}",
        ),
        confusion=report(
            "results/experiments/{experiment}/report/confusion.png",
            caption="../report/confusion.rst",
            category="{experiment}",
        ),
        vector=expand(
            "results/experiments/{{experiment}}/report/{plot}.svg", plot=["curves", "confusion"]
        ),
    log:
        "logs/experiments/{experiment}/plots.log",
    resources:
        mem_mb=500,
        runtime=5,
    params:
        folder=subpath(output.curves, parent=True),
        code=source("pipeline.plots"),
    shell:
        "python -m pipeline.plots {params.folder} --metrics {input.metrics} --confusion {input.confusion}"
        " > {log} 2>&1"


rule comparison:
    input:
        metrics=expand("results/experiments/{name}/train/metrics.csv", name=config["experiments"]),
        summaries=expand(
            "results/experiments/{name}/evaluate/summary.json", name=config["experiments"]
        ),
    output:
        table=report(
            "results/report/comparison.csv",
            caption="../report/comparison.rst",
            category="Comparison",
        ),
        plot=report(
            "results/report/comparison.png",
            caption="../report/comparison_plot.rst",
            category="Comparison",
        ),
        vector="results/report/comparison.svg",
        sweeps=report(
            expand("results/report/{sweep}.{kind}", sweep=config["sweeps"], kind=["png", "csv"]),
            caption="../report/sweep.rst",
            category="Comparison",
        ),
        sweep_vectors=expand("results/report/{sweep}.svg", sweep=config["sweeps"]),
    log:
        "logs/report/comparison.log",
    resources:
        mem_mb=500,
        runtime=5,
    params:
        folder=subpath(output.table, parent=True),
        names=list(config["experiments"]),
        datasets=[experiment["dataset"] for experiment in config["experiments"].values()],
        sweeps=json.dumps(config["sweeps"]),
        code=source("pipeline.comparison"),
    shell:
        "python -m pipeline.comparison {params.folder} --names {params.names} --datasets {params.datasets}"
        " --metrics {input.metrics} --summaries {input.summaries}"
        " --sweeps {params.sweeps:q} > {log} 2>&1"
