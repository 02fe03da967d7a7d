rule fetch:
    output:
        folder=directory("results/datasets/{dataset}/published"),
    log:
        "logs/datasets/{dataset}/fetch.log",
    resources:
        mem_mb=1000,
        runtime=120,
    params:
        name=lookup(dpath="datasets/{dataset}/source/published", within=config),
        options=options_of("sources.published"),
        code=code_of("pipeline.sources.published"),
    shell:
        "python -m pipeline.sources.published fetch {params.name} {output.folder:q} --options {params.options:q} 2>&1 | tee {log:q}"


rule build:
    input:
        records="results/datasets/{dataset}/published",
    output:
        databases=directory(DATABASES),
        manifests=MANIFESTS,
        lists=LISTS,
    log:
        "logs/datasets/{dataset}/databases.log",
    wildcard_constraints:
        dataset=datasets_from("published"),
    threads: 8
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        name=lookup(dpath="datasets/{dataset}/source/published", within=config),
        folder=subpath(input.records, parent=True),
        code=code_of("pipeline.sources.published"),
    shell:
        "python -m pipeline.sources.published build {params.name} {input.records:q} {params.folder:q}"
        " --threads {threads} 2>&1 | tee {log:q}"


rule reuse:
    input:
        records=databases_of,
        names=names_of,
    output:
        databases=directory(DATABASES),
        manifests=MANIFESTS,
        lists=LISTS,
    log:
        "logs/datasets/{dataset}/databases.log",
    wildcard_constraints:
        dataset=datasets_from("database"),
    threads: 8
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        folder="results/datasets/{dataset}",
        options=options_of("sources.databases"),
        code=code_of("pipeline.sources.databases"),
    shell:
        "python -m pipeline.sources.databases {input.records:q} {params.folder:q} --options {params.options:q}"
        " --threads {threads} 2>&1 | tee {log:q}"


ruleorder: build > reuse > label > lmdb
