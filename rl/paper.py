"""The paper, as TRL's model card cites it."""

PAPER = {
    "title": "Faithful GRPO: Improving Visual Spatial Reasoning in Multimodal Language Models via Constrained Policy Optimization",
    "id": "2604.08476",
    "citation": """\
@article{kancheti2026faithful,
    title   = {Faithful GRPO: Improving Visual Spatial Reasoning in Multimodal Language Models via Constrained Policy Optimization},
    author  = {Kancheti, Sai Srinivas and Kanade, Aditya and Sinha, Rohit and Balasubramanian, Vineeth N and Ganu, Tanuja},
    year    = 2026,
    eprint  = {arXiv:2604.08476},
}""",
}
