import torch

from pydl import d2l

h, w = 56, 72
X = torch.rand(size=(1, 3, h, w))
Y = d2l.multibox_prior(X, sizes=[0.75, 0.5, 0.25], ratios=[1, 2, 0.5])
boxes = Y.reshape(h, w, 5, 4)
d2l.set_figsize()
fig = d2l.plt.imshow(X[0].permute(1, 2, 0).numpy())
bbox_scale = torch.tensor((w, h, w, h))
d2l.show_bboxes(fig.axes, boxes[25, 25] * bbox_scale, ["s=0.75, r=1", "s=0.5, r=1", "s=0.25, r=1"])

ground_truth = torch.tensor([[0, 0.1, 0.08, 0.52, 0.92], [1, 0.55, 0.2, 0.9, 0.88]])
anchors = torch.tensor(
    [
        [0, 0.1, 0.2, 0.3],
        [0.15, 0.2, 0.4, 0.4],
        [0.63, 0.05, 0.88, 0.98],
        [0.66, 0.45, 0.8, 0.8],
        [0.57, 0.3, 0.92, 0.9],
    ]
)
labels = d2l.multibox_target(anchors.unsqueeze(dim=0), ground_truth.unsqueeze(dim=0))
classes = labels[2][0]

anchors = torch.tensor(
    [[0.1, 0.08, 0.52, 0.92], [0.08, 0.2, 0.56, 0.95], [0.15, 0.3, 0.62, 0.91], [0.55, 0.2, 0.9, 0.88]]
)
cls_probs = torch.tensor([[0.0] * 4, [0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.9]])
output = d2l.multibox_detection(
    cls_probs.unsqueeze(dim=0), torch.zeros(1, anchors.numel()), anchors.unsqueeze(dim=0), nms_threshold=0.5
)
