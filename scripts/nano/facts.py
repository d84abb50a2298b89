"""The little world the nano model knows: tables of facts, one row per topic.

Columns are separated by "|". Clauses that may follow "First, " or "Then, " start in lower case.
How a row becomes a question and an answer is the business of `domains.py`.
"""


def table(text):
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


NAMES = "Tom Anna Ben Mia Leo Sara Max Lily Omar Nina Jack Eva Paul Zoe".split()

THINGS = "apples pencils stamps marbles books coins cards shells stickers eggs cookies balls flowers keys".split()

CONTAINERS = "bags boxes baskets jars".split()

# big unit (one, many) | small unit | how many small ones in a big one
UNITS = table("""
meter | meters | centimeters | 100
kilometer | kilometers | meters | 1000
kilogram | kilograms | grams | 1000
liter | liters | milliliters | 1000
hour | hours | minutes | 60
minute | minutes | seconds | 60
day | days | hours | 24
week | weeks | days | 7
year | years | months | 12
dozen | dozen | pieces | 12
centimeter | centimeters | millimeters | 10
euro | euros | cents | 100
""")

# dish | how | minutes | before | after
DISHES = table("""
rice | boil it in salted water | 12 | wash the rice | serve it with butter
pasta | boil it in salted water | 9 | fill a large pot with water | toss it with olive oil
mashed potatoes | boil them in salted water | 20 | peel the potatoes | mash them with milk
lentils | simmer them in broth | 25 | rinse the lentils | add a little lemon juice
oatmeal | simmer it in milk | 5 | measure the oats | top it with honey
salmon | bake it in the oven | 15 | rub the salmon with oil | serve it with lemon
chicken soup | simmer it on low heat | 45 | chop the vegetables | season it with parsley
pancakes | fry them in a hot pan | 4 | mix flour, milk and eggs | stack them with syrup
tomato sauce | simmer it on low heat | 30 | chop the tomatoes | stir in fresh basil
bread | bake it in the oven | 35 | knead the dough | let it cool on a rack
roast carrots | roast them in the oven | 25 | cut the carrots into sticks | sprinkle them with salt
fried mushrooms | fry them in a hot pan | 7 | slice the mushrooms | add garlic and parsley
sweet corn | boil it in a large pot | 6 | remove the husks | spread butter on it
banana muffins | bake them in the oven | 22 | mash two ripe bananas | let them cool on a rack
vegetable curry | simmer it on low heat | 30 | chop the vegetables | serve it over rice
pumpkin soup | simmer it in broth | 28 | cut the pumpkin into cubes | blend it with cream
""")

# country | capital | continent | language
COUNTRIES = table("""
France | Paris | Europe | French
Germany | Berlin | Europe | German
Spain | Madrid | Europe | Spanish
Italy | Rome | Europe | Italian
Portugal | Lisbon | Europe | Portuguese
Greece | Athens | Europe | Greek
Poland | Warsaw | Europe | Polish
Norway | Oslo | Europe | Norwegian
Sweden | Stockholm | Europe | Swedish
Austria | Vienna | Europe | German
Hungary | Budapest | Europe | Hungarian
Japan | Tokyo | Asia | Japanese
China | Beijing | Asia | Chinese
Thailand | Bangkok | Asia | Thai
Vietnam | Hanoi | Asia | Vietnamese
Egypt | Cairo | Africa | Arabic
Morocco | Rabat | Africa | Arabic
Kenya | Nairobi | Africa | Swahili
Ghana | Accra | Africa | English
Cuba | Havana | North America | Spanish
Peru | Lima | South America | Spanish
Chile | Santiago | South America | Spanish
""")

# animals | class | food | where they live | one more thing
ANIMALS = table("""
owls | birds | mice | in forests | they hunt at night
bears | mammals | berries and fish | in forests | they sleep through the winter
penguins | birds | fish | on icy coasts | they cannot fly
camels | mammals | dry grass | in deserts | they can go for days without water
frogs | amphibians | insects | in ponds | they start life as tadpoles
sharks | fish | smaller fish | in oceans | they have many rows of teeth
rabbits | mammals | grass and leaves | in meadows | they live in burrows
bees | insects | nectar | in hives | they make honey
pandas | mammals | bamboo | in mountain forests | they eat most of the day
dolphins | mammals | fish | in oceans | they breathe air
turtles | reptiles | plants | in ponds and seas | they carry a hard shell
squirrels | mammals | nuts | in trees | they store food for the winter
lions | mammals | meat | in grasslands | they live in groups
ducks | birds | water plants | on lakes | they have webbed feet
snakes | reptiles | small animals | in deserts and forests | they smell with the tongue
elephants | mammals | leaves and bark | in grasslands | they drink with the trunk
spiders | arachnids | insects | in webs | they have eight legs
koalas | mammals | eucalyptus leaves | in trees | they sleep most of the day
""")

# question after "why" | the fact | because | two details | key word
SCIENCE = table("""
is the sky blue | the sky is blue | air scatters blue light the most | sunlight holds all colors | the blue part is spread around | scattering
does ice float | ice floats | ice is lighter than water | water grows when it freezes | the same weight needs more room | density
do leaves turn red in fall | leaves turn red in fall | the green color fades away | days grow shorter | other colors can be seen then | chlorophyll
does the moon shine | the moon shines | it reflects light from the sun | the moon makes no light itself | we see its bright side | reflection
do we see lightning before thunder | we see lightning before thunder | light is faster than sound | the flash arrives at once | the sound needs a few seconds | speed
does metal feel cold | metal feels cold | it takes heat from the hand quickly | heat flows from warm to cold | metal carries it away | conduction
do magnets pull iron | magnets pull iron | their field acts on the iron | iron holds tiny magnets | the field lines them up | magnetism
does bread rise | bread rises | yeast makes small gas bubbles | yeast eats the sugar | the bubbles lift the dough | yeast
do plants need light | plants need light | they use it to make sugar | leaves catch the light | water and air do the rest | photosynthesis
does a ball fall down | a ball falls down | the earth pulls it | every mass pulls on others | the earth is very heavy | gravity
is the sea salty | the sea is salty | rivers carry salt into it | rain washes salt from rocks | the water leaves but the salt stays | minerals
do puddles dry up | puddles dry up | the water turns into vapor | the sun warms the water | the vapor rises into the air | evaporation
do we have seasons | we have seasons | the earth is tilted | the earth goes around the sun | each half gets more light in turn | tilt
does soap clean | soap cleans | it lifts grease off the skin | one end likes water | the other end likes fat | molecules
do we breathe | we breathe | the body needs oxygen | the lungs take in air | the blood carries it around | oxygen
does an echo happen | an echo happens | sound bounces back from a wall | sound travels as waves | hard walls send it back | waves
""")

# word | opposite | word of the same meaning | a sentence with the word
ADJECTIVES = table("""
hot | cold | very warm | The soup is hot
big | small | large | The house is big
fast | slow | quick | The train is fast
happy | sad | glad | The child is happy
old | young | aged | The tree is old
dark | light | dim | The room is dark
hard | soft | firm | The stone is hard
loud | quiet | noisy | The street is loud
rich | poor | wealthy | The king is rich
brave | afraid | bold | The rider is brave
early | late | ahead of time | The bus is early
clean | dirty | spotless | The kitchen is clean
empty | full | vacant | The glass is empty
cheap | expensive | low in price | The ticket is cheap
strong | weak | powerful | The horse is strong
wet | dry | soaked | The grass is wet
wide | narrow | broad | The river is wide
easy | difficult | simple | The test is easy
""")

# one | many | a sentence with the word
PLURALS = table("""
mouse | mice | A mouse runs by
child | children | A child plays outside
foot | feet | My foot hurts
tooth | teeth | One tooth is loose
goose | geese | The goose swims
leaf | leaves | A leaf falls
knife | knives | The knife is sharp
wolf | wolves | A wolf howls
city | cities | The city is busy
man | men | The man waves
sheep | sheep | A sheep eats grass
box | boxes | The box is empty
""")

# what it does | code | what it returns
PYTHON = table("""
sort a list | sorted(items) | a new sorted list
count the items in a list | len(items) | a whole number
add up a list of numbers | sum(numbers) | the total
find the largest number in a list | max(numbers) | one number
find the smallest number in a list | min(numbers) | one number
turn text into capital letters | text.upper() | a new text
turn text into small letters | text.lower() | a new text
split text into words | text.split() | a list of words
round a number | round(number) | a whole number
reverse a list | items[::-1] | a new list
read a line from the user | input() | a text
turn text into a number | int(text) | a whole number
remove spaces around text | text.strip() | a new text
check whether a word is in a list | word in words | true or false
remove duplicates from a list | set(items) | a set
show a value on the screen | print(value) | a line on the screen
""")

# place | three things to pack | weather | one tip
PLACES = table("""
beach | sunscreen, a towel and a hat | hot | stay in the shade at noon
mountains | warm socks, a map and good boots | windy | start early in the morning
desert | water, a scarf and sunglasses | very dry | drink often
city | comfortable shoes, a camera and a map | mild | buy a day ticket for the bus
forest | a compass, a rain jacket and snacks | cool | stay on the marked path
lake | a swimsuit, a towel and a book | pleasant | rent a small boat
island | sandals, sunscreen and a diving mask | warm | check the ferry times
jungle | insect spray, long trousers and a lamp | humid | go with a local guide
north | a thick coat, gloves and a warm hat | freezing | dress in layers
countryside | a bicycle, a picnic and a light jacket | calm | ask for the farm shop
ski resort | ski gloves, goggles and hand cream | snowy | book the lessons early
campsite | a tent, a sleeping bag and matches | fresh | arrive before dark
""")

# instrument | family | how it is played | two details
INSTRUMENTS = table("""
violin | string | with a bow | it has four strings | hold it under your chin
cello | string | with a bow | it has four strings | hold it between your knees
guitar | string | with the fingers or a pick | it has six strings | press the strings on the neck
harp | string | by plucking the strings | it has many strings | use both hands
piano | keyboard | by pressing the keys | it has eighty-eight keys | curve your fingers
organ | keyboard | with hands and feet | it has many pipes | change the sound with the stops
flute | wind | by blowing across a hole | it is made of metal | hold it to the side
clarinet | wind | by blowing on a reed | it is made of wood | cover the holes with your fingers
trumpet | brass | by buzzing the lips | it has three valves | sit up straight
trombone | brass | by moving a slide | it has a long slide | keep the arm relaxed
drum | percussion | with two sticks | it has a tight skin | keep the wrists loose
xylophone | percussion | with small mallets | it has wooden bars | let the mallet bounce
""")

# plants | light | how often to water | when to harvest | one step
PLANTS = table("""
tomatoes | full sun | every two days | in late summer | tie them to a stick
basil plants | plenty of sun | every day | all summer | pinch off the flowers
roses | full sun | twice a week | in early summer | cut them back in spring
carrots | full sun | twice a week | in fall | loosen the soil deeply
lettuce plants | half shade | every day | in spring | leave room between the heads
strawberries | full sun | every two days | in early summer | put straw under the fruit
mint plants | half shade | every two days | all summer | keep it in its own pot
potatoes | full sun | once a week | in fall | heap up the soil
beans | full sun | twice a week | in summer | give them a pole
ferns | shade | every two days | never | spray the leaves
sunflowers | full sun | twice a week | in fall | protect them from wind
onions | full sun | once a week | in late summer | pull out the weeds
""")

RECIPIENTS = "teacher neighbor aunt boss doctor friend coach grandmother colleague landlord".split()

# occasion: name of the note | words in the question | sentence | two details | what it is about
NOTES = {
    "thank-you note": ("thank my {who} for {what}", "Dear {who}, thank you so much for {what}.",
                       ["it made me very happy", "I hope to see you soon"],
                       ["the book", "the flowers", "the dinner", "the ticket", "the cake", "the good advice", "the ride home"]),
    "invitation": ("invite my {who} to {what}", "Dear {who}, you are warmly invited to {what}.",
                   ["it starts at six o'clock", "please bring a friend"],
                   ["the garden party", "the concert", "the school play", "the picnic", "the film night"]),
    "apology": ("tell my {who} that I am sorry about {what}", "Dear {who}, I am sorry about {what}.",
                ["I will be more careful next time", "thank you for your patience"],
                ["the noise", "the delay", "the mistake", "the broken vase", "the missed call"]),
}
