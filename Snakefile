# The study as a graph of jobs, for those who have Snakemake 8 or later (pip install snakemake):
#
#   snakemake --cores 4 --config notebooks="02 03" each="seed=0,1,2" profile=smoke
#
# Parameter sets of one notebook run in parallel; notebooks run one after the other, as in `make study`.
# Both skip what either has finished. Settings: notebooks, profile, set and each, as on the command line;
# speechlab: the command, if it is not on the PATH.
import shlex
import sys

sys.path.insert(0, workflow.basedir)
from speechlab.study import runner

ASKED = {key: str(config.get(key, "")).split() for key in ("notebooks", "set", "each")}
PROFILE = config.get("profile", runner.QUICK)
SETS = runner.plan(
    ASKED["notebooks"],
    PROFILE,
    fixed=runner.assignments(ASKED["set"]),
    each=runner.assignments(ASKED["each"]),
)
# A job's output is an empty mark, not the executed notebook: Snakemake deletes outputs before it reruns
# a job, and a failed rerun must not delete the earlier copy.
MARKS = {one.name: f"results/notebooks/marks/{one.name}" for one in SETS}
NUMBERS = {one.name: number for number, one in enumerate(SETS)}


def before(wildcards):
    """The notebook and the marks of all earlier notebooks."""
    own = SETS[NUMBERS[wildcards.name]].notebook.path
    earlier = [MARKS[one.name] for one in SETS if one.notebook.path < own]
    return [str(own), *earlier]


def command(wildcards):
    words = [config.get("speechlab", "speechlab"), "study", *ASKED["notebooks"]]
    words += ["--profile", PROFILE, "--only", str(NUMBERS[wildcards.name])]
    for option in ("set", "each"):
        words += [word for given in ASKED[option] for word in (f"--{option}", given)]
    return shlex.join(words)


rule all:
    input:
        list(MARKS.values()),


rule notebook:
    input:
        before,
    output:
        touch("results/notebooks/marks/{name}"),
    params:
        command=command,
        source=runner.source_hash(),  # Snakemake reruns a job when this changes
    shell:
        "{params.command}"
