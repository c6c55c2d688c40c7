import sys

from tests.golden import main

main(keep=sys.argv[1:] == ["new"])
