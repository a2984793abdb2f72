"""Metrics: arrays in, sums that add up over sections and blocks out, scores from the sums.

How to add a score or a metric
------------------------------
A *score* is a number such as ``seg``; a *metric* is a group of scores that ``--metrics`` can name, such as ``cells``.

To add a **score to an existing metric**, write a function in its module and an entry in its ``SCORES`` table (em:
``em.MEASURES`` and ``em_counts.SCORES``). The function takes sums whose fields have any leading axes (...) and
returns the scores (...); it uses :func:`.sums.quotient`, which is NaN where the score is undefined. The command line,
``--json``, ``--csv``, the confidence intervals and ``--baseline`` then have the score. A line in ``_ALL`` of
``unetcli/report/measure_texts.py`` shows it in the report. A score of cells that an incomplete truth would make wrong
is also listed in ``cells.COMPLETE_ONLY``.

To add a **metric**:

1. ``unetcli/metrics/NAME.py``: a frozen dataclass of sums, functions that compute the scores, their table ``SCORES``,
   and ``METRIC = SumsMetric(NameSums, SCORES)``. Cite the paper and the equation. :mod:`.voi` is an example. Sums of
   objects derive from :class:`.sums.TableSums` and have ``of(table)``; other sums derive from :class:`.sums.Sums`.
2. ``unetcli/evaluate/request.py``: an entry in ``METRICS``. It states which kinds of predictions the metric scores, its
   leading score, and whether it scores objects, scores the foreground or needs whole sections.
3. ``unetcli/evaluate/counting.py``: an entry in ``SUMS_METRICS``. Sums of objects need nothing else: they are computed
   from the table of each frame or volume, in 2-D and 3-D, and for folders of the cell tracking challenge. Other sums
   need a branch in ``count_section``, which gets the arrays of one section, or of its part in a block, and returns
   ``Counts(sums={NAME: {section: sums}})``. ``foreground_of`` cuts ``values`` at the threshold; ``data.valid`` is False
   for pixels that are not scored, or None.
4. ``unetcli/report/measure_texts.py``: the texts of the report, in ``_ALL``, ``HEADLINES`` and ``METRIC_NAMES``.
5. A section in ``docs/metrics.md``, a line in the docstring of ``unetcli/evaluate/result.py``, and an entry in ``KEYS``
   of ``tests/cli/test_evaluate.py``. ``python tests/command_pages.py`` writes the page of the command again.

A test compares the scores with another implementation or with a case worked out by hand, and with their values for the
same data in several blocks; see ``tests/metrics/test_voi.py`` and ``tests/evaluate/test_blocks.py``.
"""
