"""What the paper leaves open, what the authors' later code did, and what the runs here do."""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """paper: what the paper says; code: what the authors' later code does, on CIFAR-100; ours: our choice."""

    about: str
    paper: str
    code: str
    ours: str


OPEN_QUESTIONS = (
    Question(
        "What the weighted gradients are divided by",
        "Equation 22 has no divisor; the losses (equations 2 and 3) are divided by the batch size N.",
        "By the sum of the batch's weights.",
        "IMAELoss and DMLoss: by the sum unless asked otherwise; the others: by N. For p uniform the mean "
        "weight is 1 for CCE, 0.67 for MAE, 1.09 for IMAE-0.5, 4.42 for IMAE-8 and 24.08 for IMAE-16, so at "
        "one learning rate steps by N differ as much. Runs of protocol 2: IMAE by the sum, the others by N; "
        "the first runs: all by N. `imae paper arithmetic` compared both, and decided IMAELoss's default.",
    ),
    Question(
        "Whether a wrong label may be the right one",
        "Yes: any of the ten classes, so at rate r about 0.9 r of the labels are wrong.",
        "No: one of the other classes.",
        "Table 2 and figures 3 to 8 as the paper; the later version's table 6 as the code.",
    ),
    Question(
        "Which labels are drawn: the seed of the noise",
        "Not said.",
        "123.",
        "122 + the run's seed, from numpy's mt19937; higher rates make the same labels wrong, and more.",
    ),
    Question(
        "When 'best' is taken",
        "The best during training; how often it was tested is not said.",
        "A test every 1,000 iterations.",
        "Every 1,000 iterations (64 tests); scaled runs have fewer. The best of more tests is higher, and it "
        "is chosen on the test images.",
    ),
    Question(
        "Which accuracy table 1 prints",
        "Not said.",
        "The later table prints both, 0 to 0.3 points apart on clean labels.",
        "Compared with our final one; our best stands beside.",
    ),
    Question(
        "How the accuracy on the training set is measured",
        "Not said: when, with or without augmentation, with which BatchNorm statistics.",
        "Not published.",
        "On all training images, not augmented, in phase TEST; tables have the value at the end.",
    ),
    Question(
        "In which order images come, and what a batch holds",
        "Batches of 128; the order is not said. Caffe reads an LMDB from beginning to end, again and again.",
        "32 classes x 8 images by their noisy labels, drawn at random.",
        "Shuffled anew for each epoch, as He et al. did. The first runs: the LMDB's order, which is "
        "CIFAR-10's own, or shuffled once where no file says that one.",
    ),
    Question(
        "Weight decay",
        "0.0001; not said on what.",
        "0.0005; not on biases.",
        "0.0001 on all that is learned, Scale's factors and biases too, as Caffe does unless told otherwise.",
    ),
    Question(
        "Shortcuts where the size changes",
        "'Exactly same architectures' as He et al.: zero-padded identities (option A).",
        "Projections.",
        "Option A.",
    ),
    Question(
        "Biases of convolutions",
        "Not said; He et al. have BatchNorm after each convolution, which makes biases redundant.",
        "There are some, with twice the learning rate.",
        "No biases.",
    ),
    Question(
        "What is subtracted from an image",
        "Not said; He et al. subtract the mean image.",
        "CIFAR-10's mean of each channel, red's from blue and blue's from red; no scaling.",
        "The mean image, as He et al.; no scaling. The first runs: a mean for each channel, in the right "
        "order.",
    ),
    Question(
        "Augmentation",
        "4 pixels of padding, a random crop of 32x32, a flip.",
        "Resized to 36x36, a random crop, a flip.",
        "As the paper. The zeros are put on after the mean is subtracted, as He et al. did; in the first "
        "runs before, so that the border was black.",
    ),
    Question(
        "BatchNorm's statistics for tests",
        "Caffe's; its moving average reaches back about 1,000 iterations.",
        "Caffe's.",
        "Caffe's; in scaled runs the average reaches back the same share of the run.",
    ),
    Question(
        "T",
        "0.5 on clean, 8 on noisy labels, fixed. The supplement advises a validation set, and takes the "
        "training images with their intact labels for one.",
        "Chosen for each noise rate: 6, 8, 8, 2 for 0, 20, 40, 60 % in the logs.",
        "As the paper; `imae paper choose-t` measures T on held-out images.",
    ),
    Question(
        "IMAE's loss value",
        "MAE's 2 (1 - p): only the gradient is replaced.",
        "The weighted mean of -log p.",
        "As the paper; it is shown in logs and changes no weight.",
    ),
    Question(
        "The factor 2 of MAE's gradient",
        "In equation 18.",
        "Left out: p (prob - onehot).",
        "As the paper.",
    ),
    Question(
        "IMAE's gradient where p is 0 or 1",
        "Equation 22 divides by MAE's weight 4 p (1 - p), 0 at both ends; how 0/0 is avoided is not said.",
        "Divides by 2 - 2 p + 1e-6: where 1 - p is far below 1e-6 the gradient is gone.",
        "As their layer, by `epsilon: 1e-6`. With `epsilon: 0` equation 22 is exact: the weight is 1 at both "
        "ends, so an example is pushed for ever. The first runs are exact; IMAE-0.5 then hardly fits clean "
        "labels, and with the authors' layer it does: `imae paper suspects`.",
    ),
    Question(
        "What a scaled-down run shortens",
        "-",
        "-",
        "Drops, tests and BatchNorm's average, in proportion. Rate and weight decay stay, so the product of "
        "rate, decay and iterations, which says how far decay shrinks a weight, is smaller by that factor; "
        "`imae paper suspects` trains with a decay that makes up for it at 640 iterations.",
    ),
    Question(
        "How many runs each number is from",
        "Not said.",
        "One log for each.",
        "Each table gives the number of seeds, and the spread if there are several.",
    ),
    Question(
        "The images",
        "CIFAR-10.",
        "CIFAR-100.",
        "What `Images` states for the runs, identified by a digest of all pixels. The recompressed JPEGs "
        "differ from the original pixels by about 5.9 grey levels on average, so accuracies on them are "
        "taken to be a little lower.",
    ),
    Question(
        "The later version's table 6",
        "-",
        "Its curves run to about 100,000 iterations, with drops near 32,000 and 48,000.",
        "64,000 iterations, T = 0.5 on clean and 8 on noisy labels as in table 2.",
    ),
    Question(
        "What the later version's hybrid accuracy is of",
        "-",
        "'On test set and clean training set together': of which training images, against which labels, is "
        "not said.",
        "Test images and all training images, against their clean labels. The printed numbers do not fit the "
        "training images alone whose label is right: they would be up to 24 points higher.",
    ),
    Question(
        "Where GoogLeNet starts from for MARS",
        "Not said whether its weights were trained on ImageNet before.",
        "Not published.",
        "Open: MARS is not at hand.",
    ),
)
