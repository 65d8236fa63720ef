"""The 48 base and 17 novel categories of open-vocabulary COCO (Bansal et al., 2018; fact sheet 7.2)."""

BASE_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 7: "train", 8: "truck", 9: "boat", 15: "bench",
    16: "bird", 19: "horse", 20: "sheep", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack", 31: "handbag",
    33: "suitcase", 34: "frisbee", 35: "skis", 38: "kite", 42: "surfboard", 44: "bottle", 48: "fork", 50: "spoon",
    51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 59: "pizza",
    60: "donut", 62: "chair", 65: "bed", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    78: "microwave", 79: "oven", 80: "toaster", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase",
    90: "toothbrush",
}
"""COCO category id to name, seen in training."""

NOVEL_CATEGORIES = {
    5: "airplane", 6: "bus", 17: "cat", 18: "dog", 21: "cow", 22: "elephant", 28: "umbrella", 32: "tie",
    36: "snowboard", 41: "skateboard", 47: "cup", 49: "knife", 61: "cake", 63: "couch", 76: "keyboard", 81: "sink",
    87: "scissors",
}
"""COCO category id to name, named only at test time."""

ALL_CATEGORIES = dict(sorted((BASE_CATEGORIES | NOVEL_CATEGORIES).items()))
"""Both, by ascending COCO id: the class order of the 65-class sets and of their embeddings."""
