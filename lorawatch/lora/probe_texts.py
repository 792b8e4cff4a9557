"""The built-in questions and passages, as text. All of them were written for this project.

The questions ask for one number or one word, so that a reply is judged without a model. The passages are plain English
about everyday things, of the sort that any language model has read much of.
"""

from __future__ import annotations

ARITHMETIC: tuple[tuple[str, str], ...] = (
    ("What is 7 + 5?", "12"),
    ("What is 9 + 8?", "17"),
    ("What is 14 + 3?", "17"),
    ("What is 23 + 45?", "68"),
    ("What is 38 + 27?", "65"),
    ("What is 125 + 75?", "200"),
    ("What is 15 - 6?", "9"),
    ("What is 20 - 13?", "7"),
    ("What is 52 - 18?", "34"),
    ("What is 100 - 37?", "63"),
    ("What is 6 × 7?", "42"),
    ("What is 8 × 9?", "72"),
    ("What is 12 × 5?", "60"),
    ("What is 11 × 11?", "121"),
    ("What is 36 ÷ 4?", "9"),
    ("What is 81 ÷ 9?", "9"),
    ("What is half of 50?", "25"),
    ("What is twice 16?", "32"),
    ("Which number comes after 199?", "200"),
    ("How many minutes are in two hours?", "120"),
    ("How many days are in three weeks?", "21"),
    ("Tom has 4 apples and gets 3 more. How many apples has he now?", "7"),
    ("A box holds 10 eggs. How many eggs are in 5 boxes?", "50"),
    ("Ann had 12 coins and spent 5. How many coins are left?", "7"),
    ("Three friends share 15 nuts evenly. How many nuts does each get?", "5"),
)
"""Sums with their results."""

COMMON_SENSE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Is ice hot or cold?", "cold", ("hot",)),
    ("Which is larger, a mouse or an elephant?", "elephant", ("mouse",)),
    ("Which is heavier, a feather or a brick?", "brick", ("feather",)),
    ("Which is faster, a snail or a horse?", "horse", ("snail",)),
    ("Do fish live in trees or in water?", "water", ("trees",)),
    ("Does the sun rise in the west or in the east?", "east", ("west",)),
    ("Can a stone swim? Yes or no?", "no", ("yes",)),
    ("Do birds have wings? Yes or no?", "yes", ("no",)),
    ("Is a lemon sour or sweet?", "sour", ("sweet",)),
    ("Is snow white or black?", "white", ("black",)),
    ("What do you use to cut paper: scissors or a spoon?", "scissors", ("spoon",)),
    ("Where do you sleep: in a bed or in an oven?", "bed", ("oven",)),
    ("Is it dark at night or at noon?", "night", ("noon",)),
    ("Which month comes after March: April or June?", "april", ("june",)),
    ("Which day comes after Monday: Sunday or Tuesday?", "tuesday", ("sunday",)),
    ("Is the opposite of up down or left?", "down", ("left",)),
    ("Do cows eat coins or grass?", "grass", ("coins",)),
    ("Is a puppy a young dog or a young cat?", "dog", ("cat",)),
    ("Does water freeze when it gets very cold? Yes or no?", "yes", ("no",)),
    ("Can people see through a brick wall? Yes or no?", "no", ("yes",)),
    ("What grows on an apple tree: apples or potatoes?", "apples", ("potatoes",)),
    ("When it rains, do streets get wet or dry?", "wet", ("dry",)),
    ("Who repairs teeth: a baker or a dentist?", "dentist", ("baker",)),
    ("Is fire safe to touch? Yes or no?", "no", ("yes",)),
    ("Which has more legs, a spider or a hen?", "spider", ("hen",)),
)
"""Questions with the right word, and the wrong ones that they offer. Right words stand first about as often as last."""

_PASSAGES = """
Bread needs only four things: flour, water, salt and yeast. The yeast feeds on the flour and makes small bubbles of
gas, which lift the dough. In the oven the bubbles grow once more, and then the crust sets.

The moon pulls at the sea, and so does the sun. When the two pull in one line, at full moon and at new moon, the water
rises higher on the shore than in the weeks between.

A bicycle stays upright more easily when it moves. Riders steer a little to the left and a little to the right all the
time, mostly without noticing, and so keep the wheels under their weight.

In autumn many trees take the green colour out of their leaves and store what they can use in the trunk. What is left
behind is yellow, orange or red, and falls with the first strong wind.

The library opens at nine in the morning and closes at six. On Saturdays it is open until noon. Books may be kept for
four weeks, and the loan can be renewed twice if nobody else has asked for them.

A good knife is kept sharp, dry and away from other metal. A dull blade needs more force, slips more often, and is for
that reason more dangerous than a sharp one.

Letters used to take weeks to cross the ocean. Ships waited for the wind, mail bags got wet, and some never arrived.
People wrote the same news twice and sent it with two different ships.

Bees visit flowers for nectar and carry pollen from one to the next. A colony in summer may have forty thousand
workers, and each of them makes less than a spoon of honey in her life.

To boil an egg, put it into hot water and wait. After six minutes the yolk is still soft; after ten it is firm. Cold
water afterwards stops the cooking and makes the shell easier to peel.

The old bridge has three arches of grey stone. Carts crossed it for two hundred years, then lorries did, until the
council built a new road to the north and left the bridge to walkers.

Rain begins when warm air rises and cools. The water in it gathers on tiny grains of dust, the drops grow until the
air cannot hold them, and then they fall.

My grandmother kept her recipes in a tin box. Some were cut from newspapers, most were written by hand, and the best
ones were not in the box at all, because she knew them by heart.

Glass is made from sand, soda and lime, melted together at great heat. While it is soft it can be blown, pressed or
drawn out into sheets. It has to cool slowly, or it cracks.

The train to the coast leaves every hour from platform four. It stops at all stations, so the journey takes longer
than by the express, but the view of the valley is better.

Cats sleep for more than half of the day. They hunt at dawn and at dusk, when mice are about, and rest in between in a
place that is warm, dry and, if possible, high.

A map is always smaller than the land it shows, and leaves most of it out. What it keeps depends on its purpose: a
sailor needs depths and rocks, a walker needs paths and hills.

When you plant a young tree, dig a hole twice as wide as its roots. Fill it with loose soil, press it down with your
foot, and water it well, even if it looks like rain.

The market is held on the square in front of the church. Farmers come before sunrise to set up their tables, and by
noon the best cheese and the first strawberries are gone.

Paper was once made from old clothes. Rags were sorted, washed and beaten to a pulp, and a sheet was lifted out of the
water on a frame of fine wire. Later, wood took the place of rags.

A child learns to speak without lessons. It listens for a year, tries single words, then puts two of them together,
and makes mistakes that show it has understood a rule.

Salt was so valuable in some countries that roads were named after it. It kept meat and fish through the winter, and
towns that owned a salt mine grew rich.

The engine would not start, so he opened the bonnet and looked at the battery. One of the cables had come loose. He
tightened it, turned the key again, and the motor ran.

Whales breathe air, as we do. They come up, blow out what they have used, and dive again with full lungs. Some can
stay below for more than an hour.

Good shoes are worth their price. They last for years when they are cleaned and given a day of rest between two walks,
so that the leather can dry.

The first clocks had no hands. They rang a bell at certain hours to call people to prayer or to work, and nobody
needed to know how many minutes it was past the hour.

Ice floats because it is lighter than water. If it sank, lakes would freeze from the bottom up, and fish could not
live through the winter under the ice.

She had planned to read one chapter before sleep. At two in the morning she closed the book, having reached the end,
and was sorry that it was not longer.

A loud noise in the mountains comes back as an echo. Sound needs about three seconds for a kilometre, so whoever
counts the seconds can tell how far the rock wall is away.

Tomatoes want sun, warmth and water at their roots, not on their leaves. Tie the plants to a stick, and break off the
side shoots, so that the fruit gets what the plant has to give.

The museum shows tools that people used in their houses: irons heated on the stove, wooden tubs for washing, and a
machine for cutting beans that was turned by hand.

Wool keeps warm even when it is wet. Its fibres are curled and hold air between them, and it is this still air, more
than the wool itself, that keeps the cold away.

Nobody knows who invented the wheel. Potters used it before carts did, and some peoples who built great cities never
had any use for it, because they had no animals to pull a cart.

Before you paint a wall, take the pictures down, fill the holes, and cover the floor. Two thin coats look better than
one thick coat, and the first one must be dry before the second.

The river is low in August. Boys walk across it on flat stones, and the ferry, which carries forty cars in spring,
lies on the bank until the rain comes back.

Coffee came to the town with a merchant who had learned to drink it abroad. People laughed at the black water at
first. Ten years later there was a coffee house in every street.

An owl turns its head instead of its eyes, which cannot move. Its ears sit at different heights, so that it can tell,
in the dark, from where exactly a mouse is heard.

A contract should say who does what, by when, and for how much. It should also say what happens if one side does not
keep its word, since that is when people will read it.

The piano stands in the room next to the kitchen and is out of tune. Nobody minds, because the only person who plays
it is six years old and likes the low notes best.

Copper is soft and easy to shape, tin is softer still. Melted together they give bronze, which is hard enough for axes
and was for a thousand years the best metal people had.

The doctor told him to walk for half an hour each day. He began with the way to the bakery and back, and after a month
he no longer noticed the hill.

Stars do not twinkle; it is our air that moves. Seen from above the air, their light is steady, and this is one reason
for putting telescopes on mountains or into space.

The neighbours share a ladder, a wheelbarrow and a long table. Whoever needs one of them fetches it, and brings it
back clean. In twenty years there has been one quarrel, about the ladder.

Soup gets better when it is cooked slowly. Start with onions, let them become soft, add carrots and beans, cover
everything with water, and leave the pot alone for an hour.

Most deserts are not made of sand. They are plains of stone and gravel, hot by day and cold by night, where rain falls
once in a year or not at all.

The school has two hundred pupils and a garden. Each class looks after one bed, and the harvest is cooked and eaten
together on the last day before the summer holidays.

A violin is made of about seventy pieces of wood. The top is spruce, the back is maple, and the small post inside,
which nobody sees, decides how it sounds.

When the power failed, the whole street went dark. People came out with candles, talked to each other over the fences,
and some of them were almost disappointed when the light came back.

Ants find the shortest way by leaving a scent. On a short path they return sooner, so that the scent there is
stronger, and more ants follow it.

To change a tyre, loosen the nuts before you lift the car. Then raise it, take off the wheel, put on the spare, and
tighten the nuts crosswise once the car is down again.

The village lies at the end of the road, between a lake and a steep wood. In winter it is in the shade for two months,
and on the day when the sun returns there is a feast.

A newspaper has to be finished by midnight. Then the plates are made, the presses start, and at four in the morning
the first vans leave for the towns that are farthest away.

Horses sleep on their feet, but not deeply. For real sleep they lie down, one after the other, while at least one of
the herd stays awake and watches.

The window of the workshop looks north, and the carpenter prefers it so. Light from the north is even through the day,
and shows every scratch in the wood.

Sugar dissolves faster in hot tea than in cold, and faster when it is stirred. If you add too much, the rest stays at
the bottom, however long you stir.

He counted the money twice. There was enough for the ticket and a sandwich, but not for the hotel, so he decided to
take the night train and sleep on the way.

Potatoes came from the mountains of South America. For a long time farmers in Europe grew them for their flowers,
until a few bad harvests of grain taught them to eat the roots.

A lighthouse can be known by its rhythm. One gives three short flashes and a pause, the next a long one every ten
seconds, and the captain finds each of them in his list.

The meeting began late and ended early. Two of the five questions were settled, one was given to a committee, and the
others were moved to the next month, as usual.

Leaves make sugar out of light, water and air. A large tree lifts hundreds of litres of water on a summer day, and
most of it leaves again through small holes in the leaves.

If a wound bleeds, press a clean cloth on it and hold it up. Most small cuts stop after some minutes. Wash it when it
has stopped, and cover it to keep dirt away.

The dog waits at the gate from four o'clock on. It cannot tell the time, yet it knows the sound of one bus among all
the others, and gets up before the door of the bus opens.

A roof must keep out water, but let out damp air. Where this was forgotten, the beams stay wet, and after some winters
the wood begins to rot from the inside.

In chess each side has sixteen pieces. The queen is the strongest of them, the king the most important, and many games
between good players end without a winner.

Winters by the sea are mild, because water holds warmth longer than land. Far from the coast the summers are hotter,
the winters colder, and the days between them fewer.
"""

PASSAGES: tuple[str, ...] = tuple(" ".join(one.split()) for one in _PASSAGES.split("\n\n"))
"""Passages for perplexity: 64, of 33 words on average."""
