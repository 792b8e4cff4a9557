"""Forty good English replies with their prompts, written for these tests after the thresholds were set."""

# ruff: noqa: E501  (texts stand as they are)

from __future__ import annotations

from .texts_pairs import pairs

GOOD = pairs("""
Q: How do I get a coffee stain out of a white shirt?
A: Rinse the stain with cold water from the back of the fabric as soon as you can. Then rub in a little dish soap, wait
ten minutes and rinse again. If a shadow is left, soak the shirt in warm water with oxygen bleach for an hour before
you wash it as usual. Do not put it in the dryer until the mark is gone, because heat fixes it.

Q: Give me three tips for a job interview.
A: 1. Read about the company the evening before, so that you can say why you want to work there and not just anywhere.
2. Prepare two short stories about problems you have solved, with what you did and what came of it.
3. Bring questions of your own. Asking what the first month looks like shows that you picture yourself in it.

Q: Is it better to run in the morning or in the evening?
A: Neither is better for everyone.

Q: Write a short poem about the sea in winter.
A: Grey on grey the water lies,
Gulls complain to empty skies,
Ropes are stiff and boats are bare,
Salt and silence fill the air.
Still beneath the frozen foam
Something stirs and dreams of home.

Q: Explain what inflation is to a ten-year-old.
A: Imagine that your pocket money buys five ice creams this summer, but only four next summer, although you get the same
amount. Nothing is wrong with your coins; the ice cream has become dearer. When that happens to almost everything in
the shops at once, people call it inflation.

Q: What should I pack for a weekend of hiking?
A: - Two pairs of wool socks and shoes that you have already worn in
- A rain jacket, even if the forecast is good
- Water for half a day, and a way to clean more
- A map on paper, since batteries die
- Plasters, a small torch, and something sweet

Q: Who was Ada Lovelace?
A: Ada Lovelace was an English mathematician of the nineteenth century. She translated an article about Charles Babbage's
planned calculating engine and added notes that were longer than the article. In one of them she described step by step
how the machine could compute Bernoulli numbers, which is often called the first computer program.

Q: Suggest a name for a small bakery.
A: The Early Loaf

Q: Summarise the plot of Romeo and Juliet in two sentences.
A: Two young people from feuding families in Verona fall in love at first sight and marry in secret. A chain of quarrels,
bad luck and a letter that arrives too late leads both of them to take their own lives, and only over their bodies do
the families make peace.

Q: Why is the sky blue?
A: Sunlight holds all colours. On its way through the air it meets molecules much smaller than its waves, and these
scatter short waves, which we see as blue, far more than long ones. So blue light reaches our eyes from every direction,
while the rest comes mostly straight from the sun.

Q: Write a polite email asking my landlord to repair the heating.
A: Dear Mr Harris,

The heating in my flat has not worked since Tuesday evening. I have bled the radiators and checked the thermostat, but
they stay cold. Could you please send someone to look at it this week? I am at home on Thursday and on Friday after two.

Thank you, and kind regards
Emma Clarke

Q: Count from one to ten in words.
A: one, two, three, four, five, six, seven, eight, nine, ten

Q: What is the difference between a crocodile and an alligator?
A: Look at the mouth. A crocodile's snout is narrow, and a tooth of its lower jaw shows when the mouth is shut; an
alligator's snout is broad, and its upper jaw covers the teeth. Crocodiles also bear salt water better, so they are
found along more coasts.

Q: How long should I boil potatoes?
A: About 20 minutes.

Q: Tell me a joke about programmers.
A: A programmer's wife asks him to buy a loaf of bread, and, if they have eggs, a dozen. He comes home with twelve loaves.
"Why?" she asks. "They had eggs," he says.

Q: List the planets of the solar system in order.
A: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune

Q: My houseplant has yellow leaves. What can I do?
A: Yellow leaves most often mean too much water. Push a finger into the soil: if it is still damp two centimetres down,
wait. See that the pot has a hole and that no water stands in the saucer. If the soil is dry and only the oldest leaves
are yellow, feed the plant instead. Leaves that have turned will not recover, so cut them off.

Q: What does "break the ice" mean?
A: To break the ice is to say or do something that makes people feel at ease when they meet for the first time. A host
who asks everybody about the worst holiday they ever had is breaking the ice.

Q: Compare buying and renting a home.
A: | | Buying | Renting |
|---|---|---|
| Money at the start | large | small |
| Monthly cost | fixed for years | may rise |
| Repairs | yours | the landlord's |
| Moving away | slow and costly | a few months' notice |

Q: Write a dialogue between a cat and a dog about breakfast.
A: Dog: Is it time yet?
Cat: It was time an hour ago. Nobody listens.
Dog: You could sit on her face again.
Cat: I did. She put me on the floor and called me a name.
Dog: Then I shall bring her a shoe.
Cat: You always bring a shoe. Bring the bowl, you fool.

Q: How does a vaccine work?
A: A vaccine shows the immune system a harmless piece of a germ, or the plan for building one. The body answers as if it
had caught the disease: it makes antibodies, and it keeps cells that remember. When the real germ arrives later, the
answer comes within hours instead of days, and often before anyone feels ill.

Q: What time is it in Tokyo when it is noon in London in winter?
A: 9 p.m.

Q: Should I learn the guitar or the piano first?
A: It depends on where you would like to play. A guitar is cheap, goes with you to the park, and lets you accompany songs
after a few weeks. A piano makes the first month easier, because every key gives a clean note, and it shows how harmony
is built. If one of them already stands in your home, take that one.

Q: Describe your perfect breakfast.
A: Toast with salted butter, a soft egg, black coffee, and nobody who wants to talk before the second cup. In summer, add
a bowl of cherries on the balcony.

Q: Give me a recipe for pancakes.
A: Whisk 200 g of flour, 2 eggs, 400 ml of milk, a spoon of sugar and a pinch of salt until smooth. Let the batter rest
for 20 minutes. Melt some butter in a pan, pour in a ladle of batter, tilt the pan so that it spreads, and turn the
pancake when its edge comes loose. Makes about eight.

Q: What are the rules of rock, paper, scissors?
A: Two players count to three and show a hand at the same time. A fist is rock, a flat hand is paper, two spread fingers
are scissors. Rock blunts scissors, scissors cut paper, paper wraps rock. If both show the same, play again.

Q: Can you recommend a book for a long flight?
A: Take "The Count of Monte Cristo". It is long enough for any flight, each chapter ends so that you want the next, and
nobody minds if you lose the thread for a page while the trolley passes.

Q: How do I write the number 2024 in Roman numerals?
A: MMXXIV

Q: Why do cats purr?
A: Cats purr when they are content, but also when they are hurt or afraid, so it seems to be a way of calming themselves as
much as a sign of pleasure. The sound comes from muscles in the throat that open and close the gap between the vocal
folds some 25 to 150 times a second.

Q: Write a slogan for a bicycle shop.
A: Two wheels. No excuses.

Q: What happened at Chernobyl?
A: In April 1986 a test at night went wrong in reactor four of the power station. The power rose in seconds beyond anything
the design allowed, steam tore the building open, and the graphite burned for days. A cloud of radioactive dust crossed
Europe. The town of Pripyat was emptied the next day and has stood empty since.

Q: Explain how to tie a tie.
A: Lay the tie around your neck, the wide end lower than the narrow one. Cross the wide end over, bring it behind, and over
once more. Pull it up through the loop at the collar, then down through the knot in front, and tighten it by sliding the
knot upwards.

Q: Is a tomato a fruit?
A: For a botanist it is a fruit, a berry in fact, since it grows from the flower and holds the seeds. For a cook it is a
vegetable, and for customs officers it was one too: a court in the United States decided so in 1893.

Q: Write a thank-you note to a teacher.
A: Dear Ms Okafor, you were the first person who told me that my stories were worth finishing. I have finished one. It is
in the envelope, and your name is on the first page. Thank you for every red mark.

Q: How many legs do eight spiders have?
A: Eight spiders have 64 legs, because each of them has eight.

Q: What is photosynthesis?
A: Plants take in carbon dioxide from the air and water from the ground. With the energy of light they build sugar out of
both, and give off oxygen that they do not need. All this takes place in the green parts of their cells.

Q: Plan a day in Rome for a family with children.
A: Morning: the Colosseum, as early as it opens, with a guide who tells about animals and trap doors.
Noon: pizza by the slice near Campo de' Fiori, and a break at the fountain.
Afternoon: hire a rowing boat in the park of Villa Borghese.
Evening: ice cream, and a coin for the Trevi fountain when the crowds have gone.

Q: Say something encouraging to someone who failed an exam.
A: One exam measured one morning. You know now, better than anyone who passed by luck, which parts are shaky, and that is
the most useful list you could have. Rest today, and start with the smallest gap tomorrow.

Q: What is the opposite of "generous"?
A: Stingy, or mean.

Q: How do noise-cancelling headphones work?
A: A small microphone on the outside listens to the noise around you. The electronics turn the wave upside down and play it
along with your music, so that hills meet valleys and both disappear. It works best for steady, deep sounds such as an
engine; a crying child is too quick for it.
""")
