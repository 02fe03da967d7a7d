rule fetch:
    output:
        folder=directory("results/datasets/{dataset}/published"),
    log:
        "logs/datasets/{dataset}/fetch.log",
    resources:
        mem_mb=grown(1000),
        runtime=grown(120),
    params:
        name=published_name,
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
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        name=published_name,
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
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        folder=subpath(output[0], ancestor=2),
        options=options_of("sources.databases"),
        code=code_of("pipeline.sources.databases"),
    shell:
        "python -m pipeline.sources.databases {input.records:q} {params.folder:q} --options {params.options:q}"
        " --threads {threads} 2>&1 | tee {log:q}"


ruleorder: build > reuse > label > lmdb
