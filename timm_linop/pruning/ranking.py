"""stub"""


def ranking(scores, floor):
    order = sorted((float(s), g, u) for g, t in scores.items() for u, s in enumerate(t.tolist()))
    left = {g: len(t) for g, t in scores.items()}
    out = []
    for s, g, u in order:
        if left[g] / len(scores[g]) >= floor and left[g] > 1:
            left[g] -= 1
            out.append((g, u))
    return out
