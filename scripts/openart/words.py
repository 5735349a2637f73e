"""The hand-made words: kinds, emotions, actions, plain names and the pool of relational objects.

Fixed on 2026-11-24, before the first training run and before any picture of the test style was evaluated.
"""

# emojibase subgroup -> plain noun of its kind (the 55 classes of the category task)
KINDS = {
    "animal-mammal": "mammal", "animal-bird": "bird", "animal-reptile": "reptile",
    "animal-marine": "sea animal", "animal-bug": "insect", "plant-flower": "flower", "plant-other": "plant",
    "food-fruit": "fruit", "food-vegetable": "vegetable", "food-prepared": "meal", "food-asian": "asian food",
    "food-sweet": "dessert", "drink": "drink", "dishware": "tableware", "place-geographic": "landscape",
    "place-building": "building", "place-religious": "temple", "place-other": "sight",
    "transport-ground": "vehicle", "transport-water": "boat", "transport-air": "aircraft", "time": "clock",
    "event": "celebration", "award-medal": "award", "sport": "sports equipment", "game": "game",
    "clothing": "clothing", "musical-instrument": "instrument", "phone": "phone", "computer": "computer part",
    "light-video": "camera", "book-paper": "book", "money": "money", "mail": "mail", "writing": "pen",
    "office": "office supply", "lock": "lock", "tool": "tool", "science": "lab equipment",
    "household": "household item", "heart": "heart", "hand-fingers-open": "hand", "hand-fingers-partial": "hand",
    "hand-single-finger": "hand", "hand-fingers-closed": "hand", "hands": "hand", "body-parts": "body part",
    "cat-face": "cat face", "person": "person", "person-role": "worker", "person-fantasy": "fairy tale figure",
    "person-gesture": "gesture", "person-sport": "athlete", "face-costume": "monster", "face-unwell": "sick face",
    "face-smiling": "smiling face", "face-concerned": "worried face", "family": "couple", "zodiac": "",
    "sky-weather": "weather",
}  # fmt: skip
# subgroups whose members keep their own names in pretraining but belong to no kind
OTHER_SUBGROUPS = (
    "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy", "face-hat",
    "face-glasses", "face-negative", "monkey-face", "emotion", "hand-prop", "person-activity", "person-resting",
    "animal-amphibian", "place-map", "hotel", "arts-crafts", "sound", "music", "medical", "other-object",
)  # fmt: skip
# kinds whose members may stand in scenes as plain objects
OBJECT_KINDS = {
    "mammal", "bird", "reptile", "sea animal", "insect", "flower", "plant", "fruit", "vegetable", "meal",
    "asian food", "dessert", "drink", "tableware", "building", "vehicle", "boat", "aircraft", "clock",
    "celebration", "award", "sports equipment", "game", "clothing", "instrument", "phone", "computer part",
    "camera", "book", "money", "mail", "pen", "office supply", "lock", "tool", "lab equipment", "household item",
}  # fmt: skip
EMOTIONS = {
    "happy": (
        "grinning face", "grinning face with big eyes", "grinning face with smiling eyes",
        "beaming face with smiling eyes", "smiling face with smiling eyes", "slightly smiling face", "smiling face",
    ),
    "in love": (
        "smiling face with heart-eyes", "smiling face with hearts", "face blowing a kiss", "kissing face",
        "kissing face with closed eyes", "kissing face with smiling eyes",
    ),
    "sad": (
        "disappointed face", "pensive face", "frowning face", "slightly frowning face", "crying face",
        "loudly crying face", "sad but relieved face",
    ),
    "angry": ("angry face", "enraged face", "face with symbols on mouth", "face with steam from nose"),
    "scared": ("fearful face", "anxious face with sweat", "face screaming in fear", "anguished face"),
    "surprised": ("face with open mouth", "hushed face", "astonished face", "flushed face"),
    "sleepy": ("sleepy face", "sleeping face", "yawning face", "tired face"),
    "sick": (
        "face with medical mask", "face with thermometer", "face with head-bandage", "nauseated face",
        "face vomiting", "sneezing face",
    ),
}  # fmt: skip
# further emotions, in pretraining only
MORE_EMOTIONS = {
    "laughing": ("face with tears of joy", "rolling on the floor laughing", "grinning squinting face"),
    "silly": ("face with tongue", "winking face with tongue", "squinting face with tongue", "zany face"),
    "bored": ("expressionless face", "neutral face", "unamused face"),
    "confused": ("confused face", "confounded face", "face with diagonal mouth"),
}
# action -> stem of the emojibase labels that show it ("person running", "man running", "woman running")
ACTIONS = {
    "running": "running", "walking": "walking", "swimming": "swimming", "surfing": "surfing",
    "rowing a boat": "rowing boat", "riding a bike": "biking", "climbing": "climbing", "playing golf": "golfing",
    "lifting weights": "lifting weights", "juggling": "juggling", "dancing": "dancing",
    "bouncing a ball": "bouncing ball", "doing a cartwheel": "cartwheeling", "fencing": "fencing",
    "meditating": "in lotus position", "taking a bath": "taking bath", "playing handball": "playing handball",
    "wrestling": "wrestling",
}  # fmt: skip
EXTRA_ACTION_LABELS = {"skiing": ("skier",), "snowboarding": ("snowboarder",), "riding a horse": ("horse racing",)}
MORE_ACTIONS = {
    "kneeling": "kneeling", "standing": "standing", "getting a haircut": "getting haircut",
    "getting a massage": "getting massage", "bowing": "bowing", "shrugging": "shrugging",
    "playing water polo": "playing water polo", "sleeping": "in bed", "raising a hand": "raising hand",
}  # fmt: skip
# Objects of the relational tasks: plain, visually distinct, drawn in every style. A seeded shuffle takes the
# first 20 as the classes that pretraining sees and the next 20 as novel ones, seen nowhere before the test.
RELATIONAL_POOL = (
    "cat", "elephant", "penguin", "turtle", "snail", "honeybee", "octopus", "frog", "bear", "monkey", "pig", "fish",
    "sunflower", "cactus", "mushroom", "palm tree", "rose", "banana", "pineapple", "strawberry", "watermelon",
    "pear", "pizza", "hamburger", "doughnut", "birthday cake", "ice cream", "beer mug", "wine glass", "bus",
    "bicycle", "tractor", "airplane", "rocket", "sailboat", "helicopter", "house", "tent", "guitar", "violin",
    "trumpet", "umbrella", "scissors", "hammer", "key", "pencil", "backpack", "crown", "telephone", "television",
)  # fmt: skip
PLAIN_NAMES = {
    "automobile": "car", "glass of milk": "milk", "honeybee": "bee", "red apple": "apple", "ear of corn": "corn",
    "hot pepper": "chili pepper", "lady beetle": "ladybug", "wrapped gift": "present", "wastebasket": "bin",
    "hot beverage": "cup of coffee", "cooked rice": "bowl of rice", "locomotive": "steam train",
    "optical disk": "cd", "computer disk": "minidisc", "baguette bread": "baguette", "meat on bone": "meat",
    "poultry leg": "chicken leg", "doughnut": "donut", "french fries": "fries", "cheese wedge": "cheese",
    "hamburger": "burger", "articulated lorry": "truck", "sport utility vehicle": "jeep", "fire engine": "fire truck",
    "closed book": "book", "gem stone": "diamond", "game die": "die", "locked": "lock", "closed umbrella": "umbrella folded",
    "police car light": "siren", "wine glass": "wine", "beer mug": "beer", "spouting whale": "spouting whale",
    "man’s shoe": "shoe", "woman’s hat": "hat", "woman’s boot": "boot", "horizontal traffic light": "traffic light",
    "hourglass done": "hourglass", "evergreen tree": "fir tree", "deciduous tree": "tree", "musical keyboard": "piano",
    "ice": "ice cube", "soccer ball": "football", "pool 8 ball": "billiard ball", "bullseye": "dartboard",
}  # fmt: skip
BACKGROUNDS = {
    "white": (250, 250, 250), "pink": (250, 205, 220), "blue": (190, 220, 250), "green": (200, 235, 200),
    "yellow": (250, 240, 180), "orange": (250, 220, 180), "purple": (220, 205, 245), "grey": (205, 208, 212),
}  # fmt: skip
# caption templates; the first of each is the hand-written template of its task
TEMPLATES = {
    "label": ("a {}", "{}", "{}", "a picture of a {}", "the {}"),
    "left": ("a {} on the left", "on the left a {}", "the left {}", "left {}", "the object on the left is a {}"),
    "right": ("a {} on the right", "on the right a {}", "the right {}", "right {}", "the object on the right is a {}"),
    "large": ("a large {}", "the large {}", "large {}", "the larger one is a {}", "the {} is large"),
    "small": ("a small {}", "the small {}", "small {}", "the smaller one is a {}", "the {} is small"),
    "emotion": ("a {} face", "somebody is {}", "{}", "{}", "the face is {}"),
    "action": ("somebody {}", "a person {}", "{}", "{}", "the person is {}"),
    "kind": ("a {}", "{}", "{}", "a kind of {}", "a picture of a {}"),
    "background": ("a {} background", "{} background", "on a {} background"),
    "tag": ("{}", "about {}"),
}
