"""One HTML file with everything: `lab report FOLDER --out report.html`.

Modules build typed values from a book, one for each group of sections; `templates/` makes the page
of them. Only `record_facts` looks into a record's environment and calibration. Read `main` first.
"""
