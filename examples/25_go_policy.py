"""Lesson 25: a policy network shaped like AlphaGo's, on small positions of Go made here: find the
move that captures most.

A 5x5 layer, 3x3 layers, a 1x1 layer with a bias for each point, a softmax over the points. The
planes are AlphaGo's first ones: stone colours, ones, liberties. --small: few positions.
"""

import sys

import numpy as np

import convgen as cg

small = "--small" in sys.argv
SIZE = 9
COUNT, EPOCHS, FILTERS, LAYERS = (192, 1, 8, 1) if small else (4000, 10, 24, 3)
rng = np.random.default_rng(0)


def neighbours(point):
    row, column = point
    around = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [(r, c) for r, c in around if 0 <= r < SIZE and 0 <= c < SIZE]


def groups(board):
    """(stones, liberties) of every chain."""
    seen, found = set(), []
    for start in zip(*np.nonzero(board), strict=True):
        if start in seen:
            continue
        stones, liberties, open_points = {start}, set(), [start]
        while open_points:
            for near in neighbours(open_points.pop()):
                if board[near] == 0:
                    liberties.add(near)
                elif board[near] == board[start] and near not in stones:
                    stones.add(near)
                    open_points.append(near)
        seen |= stones
        found.append((stones, liberties))
    return found


def position():
    """(planes (7, SIZE, SIZE), the point that captures most); own stones 1, the other's -1."""
    while True:
        board = rng.choice([0, 1, -1], (SIZE, SIZE), p=[0.4, 0.3, 0.3])
        chains = groups(board)
        gains = {}
        for stones, liberties in chains:
            if not liberties:
                for stone in stones:  # such chains cannot be on a board
                    board[stone] = 0
        chains = groups(board)
        for stones, liberties in chains:
            if len(liberties) == 1 and board[next(iter(stones))] == -1:
                (point,) = liberties
                gains[point] = gains.get(point, 0) + len(stones)
        best = [p for p, gain in gains.items() if gain == max(gains.values())]
        if len(best) == 1:
            break
    planes = np.zeros((7, SIZE, SIZE), np.float32)
    planes[0], planes[1], planes[2], planes[3] = board == 1, board == -1, board == 0, 1
    for stones, liberties in chains:
        for stone in stones:
            planes[(3 + min(len(liberties), 3), *stone)] = 1
    return planes, best[0][0] * SIZE + best[0][1]


def positions(count):
    made = [position() for _ in range(count)]
    return np.stack([m[0] for m in made]), np.array([m[1] for m in made])


x, y = positions(COUNT)
x_test, y_test = positions(COUNT // 8)
policy = cg.zoo.alphago(filters=FILTERS, planes=7, board=SIZE, layers=LAYERS)
model = cg.compile(policy, input=(32, 7, SIZE, SIZE))
print(f"{model.parameters} parameters, {len(x)} positions")
history = model.fit(
    x,
    y,
    loss=cg.nn.CrossEntropyLoss(),
    optimizer=cg.optim.Adam(0.003),
    schedule=cg.optim.Cosine(),
    epochs=EPOCHS,
    show=False,
)
accuracy = model.evaluate(x_test, y_test)
print(f"loss {history[0].loss:.3f} -> {history[-1].loss:.3f}")
print(f"best move found in {100 * accuracy:.1f} % of {len(x_test)} other positions")
assert small or accuracy > 0.7

signs = {0: ".", 1: "X", 2: "O"}
scores = model.predict(x_test[:1])[0]
chance = np.exp(scores - scores.max())
chance /= chance.sum()
board = x_test[0, 0] + 2 * x_test[0, 1]
move = int(chance.argmax())
for row in range(SIZE):
    line = [signs[int(board[row, column])] for column in range(SIZE)]
    if move // SIZE == row:
        line[move % SIZE] = "*"
    print(" ".join(line))
print(f"* the network's move for X, probability {chance[move]:.2f}; best {y_test[0]}, found {move}")
