"""What shows finished rows: numbers, tables, figures, a self-contained page.

``summary`` takes means and intervals over seeds, ``tables`` writes them, ``figures``
draws them with ``drawing``, and ``report`` puts all of it into a folder by the template
``report.html.jinja``; ``index`` shows many studies on one page.
"""
