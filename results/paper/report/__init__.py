"""One HTML file with everything: `python -m results.paper.report FOLDER --out report.html`."""
