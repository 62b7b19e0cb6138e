"""Systems to compare with, each a program that obeys the contract of `tpi node`."""
