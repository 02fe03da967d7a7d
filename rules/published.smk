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
        "python -m pipeline.published fetch {params.name} {output.folder} {params.taken} > {log} 2>&1"


rule databases:
    input:
        folder="results/datasets/{dataset}/published",
    output:
        databases=directory(
            expand("results/datasets/{{dataset}}/lmdb/{part}", part=["train", "val"])
        ),
        manifests=expand(
            "results/datasets/{{dataset}}/lmdb/{part}.manifest.json",
            part=["train", "val"],
        ),
        lists=expand("results/datasets/{{dataset}}/lists/{part}.txt", part=["train", "val"]),
        labels="results/datasets/{dataset}/lists/labels.txt",
        classes="results/datasets/{dataset}/lists/classes.csv",
        synsets="results/datasets/{dataset}/lists/synset_words.txt",
    log:
        "logs/datasets/{dataset}/databases.log",
    wildcard_constraints:
        dataset=PUBLISHED,
    threads: 8
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        name=lookup(dpath="datasets/{dataset}/source/published", within=config),
        folder=subpath(output.labels, ancestor=2),
        code=source("pipeline.published"),
    shell:
        "python -m pipeline.published build {params.name} {input.folder} {params.folder} --threads {threads} > {log} 2>&1"


ruleorder: databases > label
ruleorder: databases > lmdb
