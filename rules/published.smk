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
        taken=copy_flag,
        code=source("pipeline.published"),
    shell:
        "python -m pipeline.published fetch {params.name} {output.folder} {params.taken} 2>&1 | tee {log}"


rule databases:
    input:
        records=records_of,
        names=names_of,
    output:
        databases=directory(
            expand("results/datasets/{{dataset}}/lmdb/{part}", part=["train", "val"])
        ),
        manifests=expand(
            "results/datasets/{{dataset}}/lmdb/{part}.manifest.json",
            part=["train", "val"],
        ),
        lists=LISTS,
    log:
        "logs/datasets/{dataset}/databases.log",
    wildcard_constraints:
        dataset=READY or "(?!)",
    threads: 8
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        command=ready_command,
        code=[source(f"pipeline.{module}") for module in ("published", "reuse", "ready")],
    shell:
        "python -m {params.command} --threads {threads} 2>&1 | tee {log}"


ruleorder: databases > label
ruleorder: databases > lmdb
