"""The study: experiments and notebooks.

experiment        the type: settings of one training, checked
enhancement       trainings of enhancement, each a base and its differences
separation        trainings of separation, each a base and its differences
experiments       the one list of experiments: lookup, table
launch            from an experiment to a run
prune             from a checkpoint to a smaller model
notebooks         parameters and notes of a notebook
execution         one notebook, executed in a process of its own
schedule          the times of notebooks, and which run in parallel
runner            which notebooks run with which parameters, and which are finished
views             what the notebooks about trainings and streams show
views_corpora     what notebook 01 shows of corpora
"""
