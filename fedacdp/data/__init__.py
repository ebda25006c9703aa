"""Data sets and how they are cut among users. One file per data set."""
