import caffe
import numpy as np


class Affine(caffe.Layer):
    """y = a x + b, the numbers from param_str; blobs are not learned"""

    def setup(self, bottom, top):
        a, b = self.param_str.split(",")
        self.a, self.b = float(a), float(b)
        self.calls = 0

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.calls += 1
        top[0].data[...] = self.a * bottom[0].data + self.b

    def backward(self, top, propagate_down, bottom):
        if propagate_down[0]:
            bottom[0].diff[...] = self.a * top[0].diff


class SquareLoss(caffe.Layer):
    """0.5 * sum (x - t)^2 / N as a loss layer"""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("two bottoms are needed")

    def reshape(self, bottom, top):
        self.diff = np.zeros_like(bottom[0].data)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = 0.5 * np.sum(self.diff**2) / bottom[0].num

    def backward(self, top, propagate_down, bottom):
        for i, s in ((0, 1), (1, -1)):
            if propagate_down[i]:
                bottom[i].diff[...] = s * self.diff * top[0].diff[0] / bottom[i].num


class Counter(caffe.Layer):
    """a data layer: produces its own batches"""

    def setup(self, bottom, top):
        self.n = 0
        self.size = int(self.param_str)

    def reshape(self, bottom, top):
        top[0].reshape(self.size, 2)
        top[1].reshape(self.size)

    def forward(self, bottom, top):
        for i in range(self.size):
            top[0].data[i] = [self.n, self.n**2]
            top[1].data[i] = self.n % 3
            self.n += 1

    def backward(self, top, propagate_down, bottom):
        pass


class Running(caffe.Layer):
    """keeps a parameter blob: a running mean of the input"""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].data.shape[1])
        self.blobs[0].data[...] = 0

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.blobs[0].data[...] = 0.5 * self.blobs[0].data + 0.5 * bottom[0].data.mean(axis=0)
        top[0].data[...] = bottom[0].data - self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff
        self.blobs[0].diff[...] += top[0].diff.sum(axis=0)
