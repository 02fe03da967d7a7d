import shutil


rule weights:
    output:
        "results/weights/{sha256}.{kind}",
    log:
        "logs/weights/{sha256}.{kind}.log",
    wildcard_constraints:
        sha256="[0-9a-f]{64}",
        kind=r"caffemodel(\.h5)?",
    resources:
        mem_mb=grown(500),
        runtime=grown(120),
    params:
        options=options_of("training.initial_weights"),
        code=code_of("pipeline.training.initial_weights"),
    shell:
        "python -m pipeline.training.initial_weights {output:q} --options {params.options:q} 2>&1 | tee {log:q}"


# Only now are outputs safe: Snakemake removes those of a training that has ended, too, if the job is killed or cancelled before
# Snakemake has seen its end. Until then the checkpoint folder keeps the results (as hard links where there are any).
onsuccess:
    for job in workflow.dag.jobs:
        if job.rule.name == "train":
            checkpoint = Path(job.params.experiment, "checkpoint")
            if (checkpoint / "finished.json").exists() and Path(job.output.weights).exists():
                shutil.rmtree(checkpoint, ignore_errors=True)


# A time limit, scancel and Ctrl-C signal every process of a job, often twice. The training ends by itself after its checkpoint;
# until then the shell must wait, or Snakemake takes the job for ended, and tee must read, or the training cannot say where it
# stopped. The signals are those of pipeline.interruption; SIGPIPE comes where tee's own reader has gone.
rule train:
    input:
        solver="results/experiments/{experiment}/prototxt/solver.prototxt",
        nets=expand(
            "results/experiments/{{experiment}}/prototxt/{net}.prototxt", net=["train", "test"]
        ),
        weights=weights_of,
        classifier=fitted("classifier.caffemodel"),
        strategy=fitted("strategy.json"),
        train=of_dataset("lmdb/train"),
        infogain=infogain_of,
        val=of_dataset("lmdb/val"),
        train_manifest=of_dataset("lmdb/train.manifest.json"),
        val_manifest=of_dataset("lmdb/val.manifest.json"),
    output:
        weights="results/experiments/{experiment}/train/final.caffemodel",
        best=expand(
            "results/experiments/{{experiment}}/train/best.{kind}", kind=["caffemodel", "json"]
        ),
        metrics="results/experiments/{experiment}/train/metrics.csv",
        sums="results/experiments/{experiment}/train/SHA256SUMS",
        seconds="results/experiments/{experiment}/train/seconds.csv",
        machine="results/experiments/{experiment}/train/machine.json",
        log="results/experiments/{experiment}/train/train.log",
        layers="results/experiments/{experiment}/train/layers.csv",
        preflight="results/experiments/{experiment}/train/preflight.csv",
        folders=directory(
            expand(
                "results/experiments/{{experiment}}/train/{folder}",
                folder=["snapshots", "tensorboard"],
            )
        ),
    log:
        "logs/experiments/{experiment}/train.log",
    threads: 8
    resources:
        mem_mb=grown(4000),
        runtime=1440,
        gpu=GPUS,
    params:
        folder=subpath(output.weights, parent=True),
        options=options_of("training.train"),
        experiment=subpath(output.weights, ancestor=2),
        code=code_of("pipeline.training.train"),
    shell:
        "trap : HUP INT TERM USR1 USR2 XCPU;"
        ' OMP_NUM_THREADS={threads} python -m pipeline.training.train {input.solver:q} {params.folder:q} --failed "$(dirname {log:q})/failed"'
        " --checkpoint {params.experiment:q}/checkpoint --keep-results --weights {input.weights:q} --fitted {input.classifier:q}"
        " --chosen {input.strategy:q} --options {params.options:q} 2>&1"
        " | (trap '' HUP INT TERM USR1 USR2 XCPU PIPE; exec tee {log:q})"
