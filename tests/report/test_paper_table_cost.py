"""The cost of adapters beside the published one."""

from hba_ray.evaluation.costs import Cost, Latency
from hba_ray.report.paper_table import render_cost

FOUND = Latency(Cost(0.2, 0.01, 1000.0), Cost(0.21, 0.02, 1018.4), "CPU, one thread", "fp32", 500, 1)


def test_ours_stands_beside_the_published_with_what_is_added():
    text = render_cost(FOUND, "tiny")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[-3:] == [
        ["without BAM", "0.2000", "0.0100", "1,000", "0.2840", "0.0290", "24,265"],
        ["with BAM", "0.2100", "0.0200", "1,018", "0.3000", "0.0470", "24,291"],
        ["added", "+5.0 %", "–", "+18", "+5.6 %", "–", "+26"],
    ]
    assert "500 rows at batch 1 on CPU, one thread, weights in fp32; 1 more to warm up" in text
    assert "gives no verdict" in text.splitlines()[0]
