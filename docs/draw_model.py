"""Draws docs/model.png, the path of a clip through MaxMViT-MLP: `python docs/draw_model.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, PAPER, CQT, MEL, HEAD = "#222222", "#f4f4f4", "#dbe8f7", "#fbe6d4", "#e0f0e0"


def box(axes, x, y, text, colour, width=2.3, height=1.0):
    shape = FancyBboxPatch(
        (x, y - height / 2), width, height, boxstyle="round,pad=0.04", facecolor=colour, edgecolor=INK
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=9, color=INK)
    return x, x + width, y


def arrow(axes, source, target, text=""):
    start, end = (source[1] + 0.06, source[2]), (target[0] - 0.06, target[2])
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK, shrinkA=0, shrinkB=0))
    if text:
        axes.text((start[0] + end[0]) / 2, max(start[1], end[1]) + 0.12, text, ha="center", va="bottom", fontsize=8)


figure = Figure(figsize=(13, 3.4), dpi=120, layout="constrained")
axes = figure.add_subplot()
axes.set(xlim=(-0.2, 16.5), ylim=(-1.75, 1.75), aspect="equal")
axes.axis("off")
clip = box(axes, 0, 0, "waveform\nmono, 44.1 kHz", PAPER)
cqt = box(axes, 3.2, 1, "constant-Q transform\n84 bins, dB\nimage 244 x 244", CQT, 2.7)
mel = box(axes, 3.2, -1, "Mel-STFT\n128 bands, dB\nimage 244 x 244", MEL, 2.7)
maxvit = box(axes, 7.0, 1, "MaxViT\nmaxvit_base_tf_224\n118.7 M, Adam", CQT, 2.7)
mvit = box(axes, 7.0, -1, "MViTv2\nmvitv2_base\n50.7 M, RAdam", MEL, 2.7)
joined = box(axes, 10.9, 0, "concatenate\n1536", PAPER, 1.7)
head = box(axes, 13.4, 0, "Dense 512, BatchNorm\nDropout 0.2, ReLU\nDense N, Adam", HEAD, 2.9)
for source, target, text in ((clip, cqt, ""), (clip, mel, ""), (cqt, maxvit, "224²"), (mel, mvit, "224²")):
    arrow(axes, source, target, text)
for source in (maxvit, mvit):
    arrow(axes, source, joined)
axes.text(10.3, 1.05, "768", fontsize=8, ha="center")
axes.text(10.3, -1.2, "768", fontsize=8, ha="center")
arrow(axes, joined, head)
figure.savefig(Path(__file__).with_name("model.png"))
