"""The study: experiments and notebooks.

experiments       the list of trainings, each a difference from a base
separation        the trainings of separation
launch            from an experiment to a run
notebooks         parameters and notes of a notebook
execution         one notebook, executed in a process of its own
runner            which notebooks run with which parameters, and which are finished
views             what notebooks about trainings show
views_separation  what notebooks about separation show
views_streaming   what notebook 10 shows of streams
views_corpora     what notebook 01 shows of corpora
"""
