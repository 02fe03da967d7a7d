rule manifest:
    input:
        results=results,
    output:
        "results/manifest.json",
    log:
        "logs/manifest.log",
    threads: 8
    resources:
        mem_mb=grown(2000),
        runtime=grown(240),
    params:
        folder=subpath(output[0], parent=True),
        config=str(FIXED / f"{os.environ[DIGEST]}.json"),
        code=code_of("pipeline.report.manifest"),
    shell:
        "python -m pipeline.report.manifest {params.folder:q} {output:q} --config {params.config:q}"
        " --threads {threads} 2>&1 | tee {log:q}"
