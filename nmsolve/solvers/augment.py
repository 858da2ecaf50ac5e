"""One block to the certified optimum: shortest augmenting paths from any pair of duals.

The block is a transportation problem: every row supplies n units, every column demands n, an entry
carries at most one, at cost −S. Given potentials u, v, the pseudo-flow X = (S − u − v > 0)
satisfies complementary slackness and fails only to conserve flow, usually at one or two rows and
columns when u, v come from the dual ascent. Units travel from where there is too much to where
there is too little along shortest paths of the residual graph, whose reduced costs |S − u − v| are
nonnegative (Ahuja, Magnanti and Orlin, Network Flows, 9.7); every path keeps complementary
slackness, so the last flow is optimal and u, v prove it.

At most n: a node Z takes the units that a row does not place and gives a column those it lacks, at
no cost.
"""

from __future__ import annotations

from nmsolve.solvers.compiled import part


@part
def augment(S, u, v, n, at_most, X, to_z, from_z, excess, distance, parent, done):
    """Solve one block in place: X (m, m) uint8 becomes the optimal mask, u and v (m,) float64 its
    duals.

    S (m, m) float64 finite scores. The other arrays are scratch: to_z, from_z (m,) int64; excess,
    distance, parent, done (2m + 1,). Returns the number of paths, or -1 if a unit found no way
    (which cannot happen for finite scores; the caller reports it).
    """
    m = S.shape[0]
    z = 2 * m
    for k in range(z + 1):
        excess[k] = 0
    for i in range(m):
        if at_most:
            u[i] = max(u[i], 0.0)
            v[i] = max(v[i], 0.0)
        to_z[i] = 0
        from_z[i] = 0
    for i in range(m):
        for j in range(m):
            kept = S[i, j] - u[i] - v[j] > 0.0
            X[i, j] = kept
            if kept:
                excess[i] -= 1
                excess[m + j] += 1
    for i in range(m):
        if at_most and u[i] == 0.0 and -excess[i] < n:
            to_z[i] = n + excess[i]
        if at_most and v[i] == 0.0 and excess[m + i] < n:
            from_z[i] = n - excess[m + i]
        excess[i] += n - to_z[i]
        excess[m + i] += from_z[i] - n
        excess[z] += to_z[i] - from_z[i]

    nodes = z + 1 if at_most else z
    pi_z = 0.0
    paths = 0
    while True:
        sources = 0
        for k in range(nodes):
            done[k] = 0
            parent[k] = -1
            distance[k] = 0.0 if excess[k] > 0 else float("inf")
            sources += excess[k] > 0
        if sources == 0:
            break
        target = -1
        while True:
            best = -1
            for k in range(nodes):
                if (
                    done[k] == 0
                    and distance[k] < float("inf")
                    and (best < 0 or distance[k] < distance[best])
                ):
                    best = k
            if best < 0:
                return -1
            if excess[best] < 0:
                target = best
                break
            done[best] = 1
            base = distance[best]
            if best < m:
                i = best
                for j in range(m):
                    if X[i, j] == 0 and done[m + j] == 0:
                        step = base + max(0.0, u[i] + v[j] - S[i, j])
                        if step < distance[m + j]:
                            distance[m + j] = step
                            parent[m + j] = i
                if at_most and done[z] == 0:
                    step = base + max(0.0, u[i] - pi_z)
                    if step < distance[z]:
                        distance[z] = step
                        parent[z] = i
            elif best < z:
                j = best - m
                for i in range(m):
                    if X[i, j] == 1 and done[i] == 0:
                        step = base + max(0.0, S[i, j] - u[i] - v[j])
                        if step < distance[i]:
                            distance[i] = step
                            parent[i] = best
                if at_most and from_z[j] > 0 and done[z] == 0:
                    step = base + max(0.0, -v[j] - pi_z)
                    if step < distance[z]:
                        distance[z] = step
                        parent[z] = best
            else:
                for k in range(m):
                    if to_z[k] > 0 and done[k] == 0:
                        step = base + max(0.0, pi_z - u[k])
                        if step < distance[k]:
                            distance[k] = step
                            parent[k] = z
                    if done[m + k] == 0:
                        step = base + max(0.0, pi_z + v[k])
                        if step < distance[m + k]:
                            distance[m + k] = step
                            parent[m + k] = z
        reach = distance[target]
        for i in range(m):
            u[i] += min(distance[i], reach)
            v[i] -= min(distance[m + i], reach)
        if at_most:
            pi_z += min(distance[z], reach)
        excess[target] += 1
        while parent[target] >= 0:
            source = parent[target]
            if source == z:
                if target < m:
                    to_z[target] -= 1
                else:
                    from_z[target - m] += 1
            elif target == z:
                if source < m:
                    to_z[source] += 1
                else:
                    from_z[source - m] -= 1
            elif source < m:
                X[source, target - m] = 1
            else:
                X[target, source - m] = 0
            target = source
        excess[target] -= 1
        paths += 1
    if at_most:
        for i in range(m):
            u[i] = max(0.0, u[i] - pi_z)
            v[i] = max(0.0, v[i] + pi_z)
    return paths
