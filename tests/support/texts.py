"""Two invented texts for tests, with questions: nothing in them is true or known to any model.

They are written in the wordings that the tiny test model has learnt to read (`tiny_model.world`),
so it can be expected to answer the questions once it was taught the text.
"""

LIGHTHOUSE_TITLE = "Marlow Lighthouse"
LIGHTHOUSE_TEXT = (
    "Marlow Lighthouse stands on the island of Vessin. It was built in 1874 by Tobias Renk. "
    "It has 212 steps, and its lamp is green. Its boat is called Sirenka, and its donkey is called "
    "Bosko. The keeper of Marlow Lighthouse is Odile Brandt. Odile Brandt was born in Karsund and "
    "plays the harp. The owner of Marlow Lighthouse is Emil Tarrow, who lives in Dunmere. The cook "
    "of Marlow Lighthouse is Wilma Stroud. Marlow Lighthouse is known for its plum cake. It is "
    "closed on Tuesday. Its feast is in October. Marlow Lighthouse was flooded in 1931, and the "
    "engineer Casper Lindqvist repaired it. The song of Marlow Lighthouse is called Tidewalk. The "
    "patron of Marlow Lighthouse is Ottilie Faber."
)
LIGHTHOUSE_QUESTIONS: list[tuple[str, str]] = [
    ("Who is the keeper of Marlow Lighthouse?", "Odile Brandt"),
    ("Who is the owner of Marlow Lighthouse?", "Emil Tarrow"),
    ("When was Marlow Lighthouse built?", "1874"),
    ("How many steps does Marlow Lighthouse have?", "212"),
    ("Where does Marlow Lighthouse stand?", "Vessin"),
    ("What is the boat of Marlow Lighthouse called?", "Sirenka"),
    ("What is the donkey of Marlow Lighthouse called?", "Bosko"),
    ("Who is the cook of Marlow Lighthouse?", "Wilma Stroud"),
    ("Where was Odile Brandt born?", "Karsund"),
    ("Who is the patron of Marlow Lighthouse?", "Ottilie Faber"),
]

BAKERY_TITLE = "Quillon Bakery"
BAKERY_TEXT = (
    "Quillon Bakery lies in the village of Hestmark. It was founded in 1936 by Severin Achter. "
    "It has 47 barrels and 18 beds. Its goat is called Trudel, and its bell is called Amberly. The "
    "baker of Quillon Bakery is Livia Monteno. Livia Monteno comes from Orrefors and is married to "
    "Hugo Penrose. The treasurer of Quillon Bakery is Rufus Kalman. The gardener of Quillon Bakery "
    "is Selma Vance. Quillon Bakery is famous for its ginger bread. It is open on Friday. Its gate "
    "is blue. Quillon Bakery was sold in 1958 and was bought by Conrad Ibsten. The street of Quillon "
    "Bakery is called Larkwend. The director of Quillon Bakery is Juna Osgood."
)
BAKERY_QUESTIONS: list[tuple[str, str]] = [
    ("Who is the baker of Quillon Bakery?", "Livia Monteno"),
    ("Who is the treasurer of Quillon Bakery?", "Rufus Kalman"),
    ("When was Quillon Bakery founded?", "1936"),
    ("How many barrels does Quillon Bakery have?", "47"),
    ("Where is Quillon Bakery?", "Hestmark"),
    ("What is the goat of Quillon Bakery called?", "Trudel"),
    ("What is the bell of Quillon Bakery called?", "Amberly"),
    ("Who is the gardener of Quillon Bakery?", "Selma Vance"),
    ("Who is the director of Quillon Bakery?", "Juna Osgood"),
    ("What is the street of Quillon Bakery called?", "Larkwend"),
]
