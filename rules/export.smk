rule export:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        preprocessing="results/experiments/{experiment}/prototxt/preprocessing.json",
        weights=learned_weights,
        labels=of_dataset("lists/labels.txt"),
        mean=of_dataset("mean.binaryproto"),
    output:
        "results/experiments/{experiment}/export/model.{format}",
    log:
        "logs/experiments/{experiment}/export.{format}.log",
    wildcard_constraints:
        format="onnx|safetensors",
    threads: 2
    resources:
        mem_mb=grown(4000),
        runtime=grown(30),
    params:
        code=code_of("pipeline.export.export"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.export.export {wildcards.format} {input.net:q} {input.weights:q} {output:q}"
        " --labels {input.labels:q} --preprocessing {input.preprocessing:q} 2>&1 | tee {log:q}"


rule merge:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        weights=learned_weights,
    output:
        net="results/experiments/{experiment}/export/merged.prototxt",
        weights="results/experiments/{experiment}/export/merged.caffemodel",
    log:
        "logs/experiments/{experiment}/merge.log",
    threads: 2
    resources:
        mem_mb=grown(8000),
        runtime=grown(30),
    params:
        stem=subpath(output.net, strip_suffix=".prototxt"),
        code=code_of("pipeline.export.surgery"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.export.surgery merge {input.net:q} {input.weights:q} --output {params.stem:q}"
        " 2>&1 | tee {log:q}"


rule convolutional:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        weights=learned_weights,
    output:
        net="results/experiments/{experiment}/export/convolutional.prototxt",
        weights="results/experiments/{experiment}/export/convolutional.caffemodel",
    log:
        "logs/experiments/{experiment}/convolutional.log",
    threads: 2
    resources:
        mem_mb=grown(8000),
        runtime=grown(30),
    params:
        stem=subpath(output.net, strip_suffix=".prototxt"),
        options=options_of("export.convolutional"),
        code=code_of("pipeline.export.surgery"),
    shell:
        "OMP_NUM_THREADS={threads} python -m pipeline.export.surgery convolutional {input.net:q} {input.weights:q}"
        " --output {params.stem:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule crop:
    input:
        net=net_to_crop,
        weights=learned_weights,
    output:
        net="results/experiments/{experiment}/export/cropped.prototxt",
        weights="results/experiments/{experiment}/export/cropped.caffemodel",
    log:
        "logs/experiments/{experiment}/crop.log",
    resources:
        mem_mb=grown(4000),
        runtime=grown(30),
    params:
        stem=subpath(output.net, strip_suffix=".prototxt"),
        code=code_of("pipeline.export.surgery"),
    shell:
        "python -m pipeline.export.surgery crop {input.net:q} {input.weights:q} --output {params.stem:q} 2>&1 | tee {log:q}"


rule average:
    input:
        net="results/experiments/{experiment}/prototxt/deploy.prototxt",
        snapshots="results/experiments/{experiment}/train/snapshots",
        weights="results/experiments/{experiment}/train/final.caffemodel",
        best="results/experiments/{experiment}/train/best.json",
    output:
        net="results/experiments/{experiment}/export/averaged.prototxt",
        weights="results/experiments/{experiment}/export/averaged.caffemodel",
    log:
        "logs/experiments/{experiment}/average.log",
    resources:
        mem_mb=grown(8000),
        runtime=grown(30),
    params:
        stem=subpath(output.net, strip_suffix=".prototxt"),
        options=options_of("export.average"),
        code=code_of("pipeline.export.surgery"),
    shell:
        "python -m pipeline.export.surgery average {input.net:q} {input.snapshots:q} --best {input.best:q}"
        " --output {params.stem:q} --options {params.options:q} 2>&1 | tee {log:q}"
