"""`imae doctor`: what of a Caffe project reads, builds, trains and exports, and what stops it.

survey.py walks the project and asks the examiner about each file; examiner.py is a process of its own, which
may neither write nor start anything; report.py shows the rows.
"""
