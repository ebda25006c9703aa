"""The 52 points of Figure 1 of Statistical Collusion: 13 sizes, four targets, certificate and true success of each.

    python -m benchmarks.collusion 1000000        # records of the population; the paper's is a million
A unit of work is a point; a round of them draws population and test records anew. N_test = N / 10, as in the paper.
"""

import sys
from itertools import count

from benchmarks.turns import take_turns
from fedacdp.data import car_population
from fedacdp.keys import Key
from fedacdp.theory.collusion import FIGURE_1, planting

PAPER = 1_000_000


def main() -> None:
    rows, seeds = int(sys.argv[1]), count()
    sizes = [max(1, n * rows // PAPER) for n in FIGURE_1]
    shape = (car_population.COUNTRIES, len(car_population.LABELS))

    def figure() -> int:
        key = Key(next(seeds))
        cars = car_population.draw(rows, key.fold("train"))
        test = car_population.draw(rows // 10, key.fold("test"))
        return len(planting(cars.natural, cars.planted, cars.y, shape, test.planted, sizes))

    take_turns(figure)


if __name__ == "__main__":
    main()
