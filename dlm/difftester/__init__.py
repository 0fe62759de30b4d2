"""DiffTester (arXiv 2509.24975): samples of one prompt lend each other their common syntax.

Unit tests for one function look alike. Every second forward the candidates of all samples are read
as code, line by line; where lines of equal structure agree, their tokens are written at once.

  trees      syntax trees of lines, and what two of them have in common
  languages  a line of Python, Java or C++ -> its tree
  release    candidates of all samples -> tokens that some other line confirms
  sampling   the loop of `dlm.sampling`, with a stop on the host every second forward
"""
