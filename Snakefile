# The embedded example, unless --configfile gives another config: Snakemake would merge the two.
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


resource_scopes:
    gpu="local",


# Snakemake's linter asks for one. It is used only with `--sdm apptainer`: the image that docs/clusters.md makes from the Dockerfile.
container: "roastery.sif"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/common_datasets.smk"
include: "rules/common_experiments.smk"
include: "rules/published.smk"
include: "rules/download.smk"
include: "rules/resize.smk"
include: "rules/label.smk"
include: "rules/lmdb.smk"
include: "rules/mean.smk"
include: "rules/linear.smk"
include: "rules/prototxt.smk"
include: "rules/train.smk"
include: "rules/features.smk"
include: "rules/export.smk"
include: "rules/report.smk"
include: "rules/manifest.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        results,
        rules.manifest.output,
