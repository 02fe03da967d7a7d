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
        mem_mb=grown(500),
        runtime=grown(5),
    params:
        folder=subpath(output.solver, parent=True),
        train=subpath(input.train, strip_suffix=".manifest.json"),
        val=subpath(input.val, strip_suffix=".manifest.json"),
        options=options_of("nets.prototxt"),
        code=code_of("pipeline.nets.prototxt"),
    shell:
        "python -m pipeline.nets.prototxt {params.folder:q} --train {params.train:q} --val {params.val:q} --mean {input.mean:q}"
        " --infogain {input.infogain:q} --chosen {input.strategy:q} --options {params.options:q} 2>&1 | tee {log:q}"
